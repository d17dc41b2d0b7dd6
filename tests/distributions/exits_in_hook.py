from fastrnn.hookspecs import hookimpl


@hookimpl
def fastrnn_backends():
    raise SystemExit(3)
