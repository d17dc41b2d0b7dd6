"""A pytest plugin: of the tests that were collected, keep every N-th, as FASTRNN_SHARD=I/N says.

`gpu_check` runs N processes of it side by side: most of a GPU test's time is compiling its kernels.
"""

from __future__ import annotations

import os
from typing import Any


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Drop what other shards run; parameters of one test go to different ones."""
    index, parts = (int(number) for number in os.environ["FASTRNN_SHARD"].split("/"))
    items[:] = items[index - 1 :: parts]
