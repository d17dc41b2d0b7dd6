"""Two processes that share a batch, by DDP and by FSDP2, learn what one learns of all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import distributed_cases
from distributed_cases import CASES, RANKS, train

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory):
    """What each process had after all cases."""
    folder = tmp_path_factory.mktemp("distributed")
    processes = []
    for rank in range(RANKS):
        arguments = [str(rank), f"file://{folder}/store", str(folder / str(rank))]
        command = [sys.executable, distributed_cases.__file__, *arguments]
        processes.append(
            subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
        )
    try:
        told = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()  # one that failed leaves the other waiting
    assert [process.returncode for process in processes] == [0] * RANKS, "\n".join(told)
    return [torch.load(folder / str(rank)) for rank in range(RANKS)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_does(by_rank, name):
    alone = train(CASES[name])
    for trained in by_rank:
        for kind, want in alone._asdict().items():
            got = trained[name][kind]
            assert list(got) == list(want)
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
            assert all(tensor.abs().sum() > 0 for tensor in want.values())


@pytest.mark.parametrize("options", [(), ("--fsdp",)], ids=["ddp", "fsdp"])
def test_the_example(options):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *(str(ROOT / "examples/train_ddp.py"), "--steps", "6", "--length", "8", "--batch", "4"),
        *options,
    ]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert [line[:8] for line in told[:-1]] == [f"step {step}/6" for step in range(1, 7)]
    kind = "FSDP2" if options else "DDP"
    assert told[-1] == f"{kind}, 2 processes on cpu: the same weights in all"
    assert "Warning" not in done.stderr
