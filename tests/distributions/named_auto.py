from fastrnn.hookspecs import hookimpl
from fastrnn_reference.backend import ReferenceBackend


class Named(ReferenceBackend):
    name = "auto"


@hookimpl
def fastrnn_backends():
    return [Named()]
