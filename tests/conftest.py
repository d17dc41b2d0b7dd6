"""What tests share: the NumPy oracle, poisoned memory, and a dispatcher that knows nothing."""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fake_backends import Fake, FakeRegistry
from fastrnn import dispatch

pytest.register_assert_rewrite("plugin_cases", "written_out")  # as in a test module

# `poisoned` asks for deterministic algorithms, among which torch counts cuBLAS on a GPU only if
# this was set before the process's first product.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """`pytest --backend NAME`: the parity tests through another backend than those they name."""
    if not pluginmanager.has_plugin("fastrnn.testing.pytest_plugin"):  # which has the same option
        parser.addoption("--backend", metavar="NAME", help="run the parity tests through it")


def pytest_configure(config: pytest.Config) -> None:
    """Say what the marker is, and refuse the name of a backend that is not there."""
    config.addinivalue_line(
        "markers",
        "backends(name, ...): run through these, or through that of --backend: as the argument "
        "`backend` where a test has one, else wherever a call leaves the choice to fastrnn",
    )
    name = config.getoption("--backend")
    if name is not None:
        try:
            dispatch.parse_names(name)
        except dispatch.BackendError as error:
            raise pytest.UsageError(f"--backend: {error}") from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The backends of a test that is marked with some, and takes one."""
    mark = metafunc.definition.get_closest_marker("backends")
    if mark is not None and "backend" in metafunc.fixturenames:
        name = metafunc.config.getoption("--backend")
        metafunc.parametrize("backend", mark.args if name is None else [name])


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object:
    """Run a marked test through its backend, and of --backend skip what that cannot run."""
    mark = pyfuncitem.get_closest_marker("backends")
    if mark is None:
        return (yield)
    name = pyfuncitem.config.getoption("--backend")
    try:
        with dispatch.use_backend(name or mark.args[0]):
            return (yield)
    except Exception as error:
        refusal: BaseException | None = error
        while refusal is not None and not isinstance(refusal, dispatch.BackendError):
            refusal = refusal.__cause__ or refusal.__context__  # compilers wrap it
        if name is None or refusal is None:
            raise
        own = f"  - {name}: "
        lines = str(refusal).splitlines()
        pytest.skip(next((line[4:] for line in lines if line.startswith(own)), lines[0]))


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """tests/oracle.py: pytest's importlib mode lets no test module import another."""
    path = Path(__file__).parent / "oracle.py"
    spec = importlib.util.spec_from_file_location("oracle", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fill uninitialised memory with NaN, so that an element nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def peak_memory() -> Callable[[Callable[[], object]], int]:
    """Of a function: the most bytes of CPU memory that torch held at a time while it ran."""

    def measure(function: Callable[[], object]) -> int:
        cpu = torch.profiler.ProfilerActivity.CPU
        settings = {"profile_memory": True, "acc_events": True}  # torch 2.11 warns without these
        with torch.profiler.profile(activities=[cpu], **settings) as profile:
            function()
        events = profile.profiler.kineto_results.events()
        memory = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
        assert memory
        # stable: what happens within a nanosecond stays in the order in which it happened
        in_order = (size for _, size in sorted(memory, key=lambda event: event[0]))
        return max(itertools.accumulate(in_order))

    return measure


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Iterator[Path]]:
    """Directories to keep measurements in, none of them there yet, and never the user's own."""
    base = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRNN_CACHE_DIR", str(base / "session"))  # for fixtures of modules
        yield (base / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def fresh_dispatcher(monkeypatch: pytest.MonkeyPatch, caches: Iterator[Path]) -> Iterator[None]:
    """No test sees another's decisions, nor the environment of whoever runs the tests."""
    monkeypatch.delenv("FASTRNN_BACKEND", raising=False)
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(next(caches)))
    dispatch.clear_cache()
    yield
    dispatch.clear_cache()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeRegistry]:
    """Make these the only backends there are."""

    def use(*backends: Fake, **how: Any) -> FakeRegistry:
        registry = FakeRegistry(*backends, **how)
        monkeypatch.setattr(dispatch, "registry", lambda: registry)
        return registry

    return use


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where torch sees no GPU; decided when tests run, not on import."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA or ROCm GPU: run `make gpu-check` on one")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
