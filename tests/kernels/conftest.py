import faulthandler
import functools
import importlib.util
import os
from pathlib import Path

import pytest

pytest.register_assert_rewrite("gpu_cases", "interpreter_cases")  # as in a test module


@pytest.fixture(scope="session", autouse=True)
def _interpreter_spared():
    """Half the time of these tests is what the interpreter does again and again."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from interpreter_spared import spared  # Triton, which not every machine has

    with spared():
        yield


@pytest.fixture(scope="session")
def oracle():
    """oracle.py, which importlib import mode keeps test modules from importing by name."""
    spec = importlib.util.spec_from_file_location("oracle", Path(__file__).with_name("oracle.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fresh_cache(tmp_path_factory):
    """Compile indeed: a kernel from an old cache says nothing of this source."""
    import triton  # which not every machine has

    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))
        yield


@pytest.fixture
def no_graphs():
    """Leave no CUDA graph for the next test."""
    from fastrnn_kernels import graphs  # likewise

    yield
    graphs.clear()


@pytest.fixture
def regime(request, monkeypatch):
    """Run the Triton backend in the interpreter in one regime, one of `interpreter_cases.TILES`.

    Of `graph` the steps find their arguments in a table, and are replayed node by node.
    """
    from fastrnn_kernels import enqueue  # likewise
    from fastrnn_triton import backend
    from interpreter_cases import tiles_of

    if request.param == "graph":
        monkeypatch.setattr(enqueue, "INTERPRETED", False)
        monkeypatch.setattr(enqueue, "MIN_STEPS_FOR_GRAPH", 1)
    monkeypatch.setattr(backend, "_found", functools.partial(tiles_of, request.param))
    return request.param


@pytest.fixture
def only(monkeypatch):
    """Run the kernels in one regime, whatever the plan would choose."""
    import fastrnn_kernels as kernels  # likewise

    def choose(regime):
        for direction in ("forward", "backward"):
            original = getattr(kernels, direction)

            def run(*arguments, original=original, config=None, **options):
                return original(*arguments, regime=regime, **options)

            monkeypatch.setattr(kernels, direction, run)

    return choose


@pytest.fixture
def ends():
    """Give up on a test that hangs; nothing else can stop a kernel that waits for ever."""
    from gpu_cases import LIMIT  # likewise

    faulthandler.dump_traceback_later(LIMIT, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
