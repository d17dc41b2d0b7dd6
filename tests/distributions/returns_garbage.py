from fastrnn.hookspecs import hookimpl


@hookimpl
def fastrnn_backends():
    return ["numpy"]
