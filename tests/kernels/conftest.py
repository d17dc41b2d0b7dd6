import faulthandler
import importlib.util
from pathlib import Path

import pytest

pytest.register_assert_rewrite("gpu_cases", "interpreter_cases")  # as in a test module


@pytest.fixture(scope="session")
def oracle():
    """oracle.py, which importlib import mode keeps test modules from importing by name."""
    spec = importlib.util.spec_from_file_location("oracle", Path(__file__).with_name("oracle.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def no_graphs():
    """Leave no CUDA graph for the next test."""
    from fastrnn_kernels import graphs  # Triton, which not every machine has

    yield
    graphs.clear()


@pytest.fixture
def ends():
    """Give up on a test that hangs; nothing else can stop a kernel that waits for ever."""
    from gpu_cases import LIMIT  # likewise

    faulthandler.dump_traceback_later(LIMIT, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
