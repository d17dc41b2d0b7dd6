"""Would see, and could change, what all others return."""

from fastrnn.hookspecs import hookimpl


@hookimpl(wrapper=True)
def fastrnn_choose_backend(request):
    yield
    return "reference"
