from fastrnn.hookspecs import hookimpl


@hookimpl
def fastrnn_backend():
    return []
