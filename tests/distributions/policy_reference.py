"""A healthy policy: the reference for short sequences."""

from fastrnn.hookspecs import hookimpl


@hookimpl
def fastrnn_choose_backend(request):
    return "reference" if request.seq_len is not None and request.seq_len < 5 else None
