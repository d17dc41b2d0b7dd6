from fastrnn.hookspecs import hookimpl


@hookimpl
def fastrnn_backends():
    raise RuntimeError("no device\n  was found")
