from fastrnn.hookspecs import hookimpl


@hookimpl
def fastrnn_choose_backend(request, candidates):
    raise ZeroDivisionError("division by zero")
