import dataclasses
import faulthandler
import functools
import importlib.util
import os
from inspect import ismodule
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.register_assert_rewrite("gpu_cases", "interpreter_cases")  # as in a test module


@pytest.fixture(scope="session", autouse=True)
def _interpreter_spared():
    """Have the interpreter do once what it does at every call, and leave out what finds nothing.

    It looks through the whole language whenever one jitted function calls another, which is half of
    the time that these tests take; a process that interprets has no other use for the language.
    Then it looks whether any sum of indices overflows: of tensors as small as these none does.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    everything = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    scope = interpreter._patch_lang(everything)

    def prepared(fn):
        # as the interpreter itself asks of every jitted function
        assert any(value in (tl, tl.core) for value in fn.__globals__.values() if ismodule(value))
        return interpreter._LangPatchScope()

    original = interpreter._get_np_dtype
    of_number = functools.cache(original)

    def np_dtype(of):
        # a pointer's type has no hash
        return original(of) if of.scalar.is_ptr() else of_number(of.scalar)

    builder = interpreter.interpreter_builder
    unchecked = dataclasses.replace(builder.options, sanitize_overflow=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", prepared)
        patch.setattr(interpreter, "_get_np_dtype", np_dtype)
        patch.setattr(builder, "options", unchecked)
        yield
    scope.restore()


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
