"""Parts of a loop side by side: every part once, errors, and whose threads they run in."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fastrnn
from fastrnn_numba import cost, team


def smaller(size: int) -> Callable[..., None]:
    """An OpenMP that has only so many threads, one after another."""

    def parallel(body: Any, data: object, threads: int, flags: int) -> None:
        for _ in range(min(size, threads)):
            body(data)

    return parallel


@pytest.mark.parametrize("whose", ["torch's", "Python's", "one of fewer", "one of one", "a fork's"])
@pytest.mark.parametrize("number", [1, 2, 3, 17])
def test_every_part_once(number: int, whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if whose == "Python's":
        monkeypatch.setattr(team, "_openmp", lambda: None)
    elif whose == "a fork's":
        monkeypatch.setattr(team, "STARTED", 0)
        monkeypatch.setattr(team, "_openmp", None)
    elif whose != "torch's":
        size = 2 if whose == "one of fewer" else 1
        monkeypatch.setattr(team, "_openmp", lambda: smaller(size))
    seen: list[tuple[int, str]] = []
    for _ in range(3):
        seen.clear()
        team.run(lambda k, name: seen.append((k, name)), [(k, f"part {k}") for k in range(number)])
        assert sorted(seen) == [(k, f"part {k}") for k in range(number)]


@pytest.mark.parametrize("whose", ["torch's", "Python's"])
def test_parts_run_at_the_same_time(whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if whose == "Python's":
        monkeypatch.setattr(team, "_openmp", lambda: None)
    elif "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("this torch has no OpenMP")
    else:
        assert team._openmp() is not None
    all_here = threading.Barrier(3, timeout=30)
    idents: list[int] = []

    def loop(k: int) -> None:
        all_here.wait()
        idents.append(threading.get_ident())

    team.run(loop, [(0,), (1,), (2,)])
    assert len(set(idents)) == 3
    assert threading.get_ident() in idents


@pytest.mark.parametrize("whose", ["torch's", "Python's"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_error_is_raised_where_it_was_called(
    at: int, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if whose == "Python's":
        monkeypatch.setattr(team, "_openmp", lambda: None)

    def loop(k: int) -> None:
        if k == at:
            raise MemoryError(f"of part {k}")

    with pytest.raises(MemoryError, match=f"of part {at}"):
        team.run(loop, [(0,), (1,), (2,)])


def test_a_torch_without_openmp(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    find = team._openmp.__wrapped__
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    assert find() is None  # there is no such library
    (tmp_path / "lib").mkdir()
    maps = Path("/proc/self/maps").read_text().splitlines()
    libc = next(line.split()[-1] for line in maps if "/libc.so" in line)
    os.symlink(libc, tmp_path / "lib" / "libtorch_cpu.so")
    assert find() is None  # and this one is not linked with OpenMP


def test_calls_of_several_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a team of its own, as torch's own calls have."""
    monkeypatch.setattr(cost, "threads", lambda request: 2)
    layer, x = fastrnn.GRU(20, 40, backend="numba"), torch.randn(30, 16, 20)
    want = torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters()))
    wrong: list[str] = []

    def work() -> None:
        for _ in range(20):
            found = torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters()))
            if not all(map(torch.equal, found, want)):
                wrong.append(threading.current_thread().name)

    others = [threading.Thread(target=work) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert not wrong
