from fastrnn.hookspecs import hookimpl
from fastrnn_reference.backend import ReferenceBackend


class Named(ReferenceBackend):
    name = "My Backend"


@hookimpl
def fastrnn_backends():
    return [Named()]
