"""Yields a good backend, then a bad one, then raises."""

from fastrnn.hookspecs import hookimpl
from fastrnn_reference.backend import ReferenceBackend


class Good(ReferenceBackend):
    name = "good"


class Bad(ReferenceBackend):
    name = "BAD"


@hookimpl
def fastrnn_backends():
    yield Good()
    yield Bad()
    raise RuntimeError("and no more")
