"""benchmarks.peer: FlashRNN, by an implementation of what its documentation promises."""

from __future__ import annotations

import dataclasses
import sys
import types

import pytest
import torch

from benchmark_cases import CASES, TRAIN
from benchmarks import one_case, outlook, peer
from fastrnn import bench, bench_hooks, plugins
from fastrnn.bench_cases import baseline
from fastrnn.benchmark import Case

PEER_CASE = Case("lstm", "train", 5, 3, 6, 6, 1, False, "float32", "cpu")


def flashrnn(Wx, R, b, states=None, function="lstm", backend="cuda_fused", dtype="bfloat16"):
    """What its documentation promises, in torch: (states, B, T, heads, D), and the last."""
    assert (backend, dtype, states) == ("cuda_fused", "float32", None)
    B, T, _, N, D = Wx.shape
    h = c = Wx.new_zeros(B, N, D)
    steps = []
    for t in range(T):
        pre = Wx[:, t] + b + torch.einsum("gndp,bnp->bgnd", R, h)
        if function == "elman":
            h = torch.tanh(pre[:, 0])
            steps.append((h,))
            continue
        i, f, z, o = pre.unbind(1)
        c = f.sigmoid() * c + i.sigmoid() * z.tanh()
        h = o.sigmoid() * c.tanh()
        steps.append((h, c))
    found = torch.stack([torch.stack(each, 1) for each in zip(*steps, strict=True)])
    return found, found[:, :, -1:]


@pytest.fixture
def installed(monkeypatch):
    """A `flashrnn` to import."""
    module = types.ModuleType("flashrnn")
    module.flashrnn = flashrnn
    monkeypatch.setitem(sys.modules, "flashrnn", module)
    peer.absent.cache_clear()
    yield module
    peer.absent.cache_clear()


@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
@pytest.mark.usefixtures("installed")
def test_flashrnn_is_given_torchs_layer(cell):
    case = PEER_CASE._replace(cell=cell)
    theirs, module = baseline(case), peer.FlashRNN(case)
    one_case.bench.load_weights(module, [w.detach() for w in theirs.parameters()])
    x, upstream = torch.randn(5, 3, 6).requires_grad_(), torch.randn(5, 3, 6)
    want = one_case.caller(theirs, "torch.nn")(x, upstream)
    got = one_case.caller(module, peer.PEER)(x, upstream)
    assert want.gradients.keys() == got.gradients.keys()
    torch.testing.assert_close(got, want)


def test_whether_flashrnn_is_there(installed, monkeypatch):
    assert peer.absent() is None
    del installed.flashrnn  # a namesake
    peer.absent.cache_clear()
    assert "flashrnn cannot be imported: AttributeError" in peer.absent()
    monkeypatch.setitem(sys.modules, "flashrnn", None)
    peer.absent.cache_clear()
    assert "flashrnn cannot be imported: ModuleNotFoundError" in peer.absent()
    assert one_case.reason_against(TRAIN[0], peer.PEER) == peer.absent()


def test_flashrnn_stands_beside_few_cases_and_its_compiler_counts(installed, monkeypatch):
    for cases in (CASES, TRAIN):
        beside = [case for case in cases if peer.takes(case)]
        assert [case.dtype for case in beside] == ["float16", "bfloat16"]
        assert beside[0] == cases[0]
    there = outlook.expected_seconds(TRAIN[0], 1)
    monkeypatch.setitem(sys.modules, "flashrnn", None)
    peer.absent.cache_clear()
    assert there - outlook.expected_seconds(TRAIN[0], 1) == pytest.approx(peer.BUILD_SECONDS)


@pytest.fixture
def registered(installed):
    plugins.reset()
    plugins.register(peer)
    yield
    plugins.reset()


@pytest.mark.usefixtures("registered")
def test_as_a_plugin_flashrnn_stands_beside_the_backends():
    found = bench_hooks.peers()
    assert list(found) == ["torch.nn", "cell loop", peer.PEER]
    flashrnn = dataclasses.replace(found[peer.PEER], can_run=lambda case: [])  # no GPU is here
    rows = bench.measure([PEER_CASE], backends=[], peers=[found["torch.nn"], flashrnn], repeats=1)
    assert [(row.implementation, row.status) for row in rows] == [
        ("torch.nn", "ok"), (peer.PEER, "ok"),
    ]  # fmt: skip
    assert rows[1].samples
    assert bench_hooks.presets()["flashrnn"].axes.H == [768]


@pytest.mark.usefixtures("installed")
def test_flashrnn_says_what_it_cannot_run(monkeypatch):
    on_gpu = PEER_CASE._replace(device="cuda")
    assert peer.reasons_against(on_gpu) == []
    other = on_gpu._replace(cell="rnn_relu", layers=2, device="cpu")
    assert peer.reasons_against(other) == [
        "cell is rnn_relu; lstm or rnn_tanh is compared",
        "it takes one layer in one direction",
        "device is cpu; needs cuda",
    ]
    monkeypatch.setitem(sys.modules, "flashrnn", None)
    peer.absent.cache_clear()
    assert "flashrnn cannot be imported" in peer.reasons_against(on_gpu)[0]
