"""What is about the backend `numba`; `make test-numba` installs Numba for it."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("numba") is None:
    collect_ignore_glob = ["test_*.py"]
