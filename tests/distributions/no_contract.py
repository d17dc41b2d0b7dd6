from fastrnn.backend import StackBackend
from fastrnn.hookspecs import hookimpl


class Silent(StackBackend):
    name = "silent"

    def can_run(self, request):
        return ["it is a test"]

    def cost(self, request):
        raise NotImplementedError

    def run(self, call):
        raise NotImplementedError


@hookimpl
def fastrnn_backends():
    return [Silent()]
