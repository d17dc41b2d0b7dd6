"""FlashRNN as a peer, by an implementation of what its documentation promises."""

from __future__ import annotations

import dataclasses
import sys
import types

import pytest
import torch

from benchmark_cases import CASES, TRAIN
from benchmarks import one_case, outlook, peer
from fastrnn import bench, bench_flashrnn, bench_hooks
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
    bench_flashrnn.absent.cache_clear()
    yield module
    bench_flashrnn.absent.cache_clear()


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
    assert bench_flashrnn.absent() is None
    del installed.flashrnn  # a namesake
    bench_flashrnn.absent.cache_clear()
    assert "flashrnn cannot be imported: AttributeError" in bench_flashrnn.absent()
    monkeypatch.setitem(sys.modules, "flashrnn", None)
    bench_flashrnn.absent.cache_clear()
    assert "flashrnn cannot be imported: ModuleNotFoundError" in bench_flashrnn.absent()
    assert one_case.reason_against(TRAIN[0], peer.PEER) == bench_flashrnn.absent()


def test_flashrnn_stands_beside_few_cases_and_its_compiler_counts(installed, monkeypatch):
    for cases in (CASES, TRAIN):
        beside = [case for case in cases if peer.takes(case)]
        assert [case.dtype for case in beside] == ["float16", "bfloat16"]
        assert beside[0] == cases[0]
    there = outlook.expected_seconds(TRAIN[0], 1)
    monkeypatch.setitem(sys.modules, "flashrnn", None)
    bench_flashrnn.absent.cache_clear()
    assert there - outlook.expected_seconds(TRAIN[0], 1) == pytest.approx(peer.BUILD_SECONDS)


@pytest.mark.usefixtures("installed")
def test_where_it_is_installed_flashrnn_stands_beside_the_backends():
    found = bench_hooks.peers()
    assert list(found) == ["torch.nn", "cell loop", "compiled loop", peer.PEER]
    assert not found[peer.PEER].on_demand
    flashrnn = dataclasses.replace(found[peer.PEER], can_run=lambda case: [])  # no GPU is here
    rows = list(
        bench.measure([PEER_CASE], backends=[], peers=[found["torch.nn"], flashrnn], repeats=1)
    )
    assert [(row.implementation, row.status) for row in rows] == [
        ("torch.nn", "ok"), (peer.PEER, "ok"),
    ]  # fmt: skip
    assert rows[1].samples
    preset = bench_hooks.presets()["flashrnn"]
    assert (preset.axes.H, preset.device, preset.dtypes) == ([768], "cuda", ("bfloat16",))


def test_where_it_is_not_installed_it_is_not_offered(monkeypatch):
    monkeypatch.setitem(sys.modules, "flashrnn", None)
    assert peer.PEER not in bench_hooks.peers()
    assert "flashrnn" not in bench_hooks.presets()


@pytest.mark.usefixtures("installed")
def test_flashrnn_says_what_it_cannot_run(monkeypatch):
    on_gpu = PEER_CASE._replace(device="cuda")
    assert bench_flashrnn.reasons_against(on_gpu) == []
    other = on_gpu._replace(cell="rnn_relu", layers=2, device="cpu")
    assert bench_flashrnn.reasons_against(other) == [
        "cell is rnn_relu; lstm or rnn_tanh is compared",
        "it takes one layer in one direction",
        "device is cpu; needs cuda",
    ]
    monkeypatch.setitem(sys.modules, "flashrnn", None)
    bench_flashrnn.absent.cache_clear()
    assert "flashrnn cannot be imported" in bench_flashrnn.reasons_against(on_gpu)[0]
