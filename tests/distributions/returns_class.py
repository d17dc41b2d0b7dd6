from fastrnn.hookspecs import hookimpl
from fastrnn_reference.backend import ReferenceBackend


@hookimpl
def fastrnn_backends():
    return [ReferenceBackend]
