"""The memory of a call, and that counting it is silent."""

from __future__ import annotations

import os

import pytest
import torch

from fastrnn.bench_memory import peak_bytes


def test_the_peak_is_what_lives_at_the_same_time():
    def call():
        first = torch.ones(1000)  # 4000
        second = first + 1  # 8000
        del first  # 4000
        third = torch.cat([second, second])  # 12000
        del second  # 8000
        return third

    assert peak_bytes(call, "cpu") == 12_000
    assert peak_bytes(lambda: None, "cpu") == 0


def test_the_results_are_part_of_it_and_what_was_there_before_is_not():
    x = torch.ones(1000, requires_grad=True)
    assert peak_bytes(lambda: x * x, "cpu") == 4000
    assert peak_bytes(lambda: torch.autograd.grad((x * x).sum(), x), "cpu") >= 4000


def test_what_is_freed_within_makes_no_peak_lower_than_nothing():
    held = [torch.ones(1000)]
    assert peak_bytes(held.clear, "cpu") == 0


def test_nothing_is_printed_but_by_the_call(capfd):
    peak_bytes(lambda: os.write(2, b"its own\n"), "cpu")
    os.write(2, b"afterwards\n")
    assert capfd.readouterr() == ("", "its own\nafterwards\n")


def test_a_call_that_raises_does_so_and_the_next_is_counted(capfd):
    with pytest.raises(ZeroDivisionError):
        peak_bytes(lambda: 1 / 0, "cpu")
    assert peak_bytes(lambda: torch.ones(10), "cpu") == 40
    assert capfd.readouterr().err == ""


def test_without_the_profiler_nobody_counts(monkeypatch):
    monkeypatch.setattr(torch.profiler, "kineto_available", lambda: False)
    assert peak_bytes(lambda: 1 / 0, "cpu") is None


@pytest.mark.gpu
def test_a_gpu_has_a_counter():
    x = torch.ones(1 << 20, device="cuda")
    assert peak_bytes(lambda: x + 1, "cuda") == x.nbytes
