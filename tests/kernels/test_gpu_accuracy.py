"""How exact results on a real GPU are: beside torch.nn's, and after 5,000 steps.

See test_gpu_regimes.py. Run by `make gpu-check`.
"""

import functools
import os

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("runs on a GPU: run without TRITON_INTERPRET", allow_module_level=True)

import fastrnn_kernels as kernels
from fastrnn import bench_cases, testing
from fastrnn.benchmark import Case
from fastrnn_kernels.plan import REGIMES
from gpu_cases import DEVICE, on_gpu, skip_where_impossible

pytestmark = on_gpu

TF32_UNIT = 2 * testing.TF32_ROUNDOFF
"""What errors may be whatever torch's. W_hh is rounded to TF32, but h, or a gate gradient, is not:
the tensor core cuts it off, by up to a whole unit."""


@pytest.mark.parametrize(("regime", "H"), [("resident", 16), ("grid", 128), ("step", 16)])
def test_a_stored_value_keeps_its_gradient_for_5000_steps(regime, H):
    """Row S3: keep = 1, write = 0, read = 0."""
    T = 5000
    skip_where_impossible(regime, "lstm", 1, H, 1, torch.float32, "tf32", ("forward", "backward"))
    how = {"regime": regime, "precision": "tf32"}
    pre = torch.tensor([-100.0, 100.0, 0.5, -100.0], device=DEVICE).repeat_interleave(H)
    gates_x = pre.expand(T, 1, 1, 4 * H).contiguous()
    weight_hh, h0 = torch.zeros(1, 4 * H, H, device=DEVICE), torch.zeros(1, 1, H, device=DEVICE)
    c0 = torch.full_like(h0, 4.2)
    made = kernels.forward("lstm", gates_x, weight_hh, h0, c0, save=True, **how)
    assert torch.equal(made.c_n, c0)
    saved = (made.output, made.gates, made.cells, c0)
    back = kernels.backward("lstm", weight_hh, *saved, d_c_n=torch.ones_like(c0), **how)
    assert torch.equal(back.d_c0, torch.ones_like(c0))


# T, dtype as torch names it, cell: whole layers of torch.nn and of fastrnn, and the truth
@functools.lru_cache(maxsize=1)
def layers(cell, dtype, T):
    case = Case(cell, "train", T, 4, 32, 64, 1, False, dtype, DEVICE)
    torch.manual_seed(0)
    theirs = bench_cases.baseline(case)
    x = torch.randn(T, 4, 32).to(DEVICE, case.torch_dtype)
    exact = bench_cases.layer(case._replace(dtype="float64", device="cpu"), "reference")
    exact.load_state_dict(theirs.state_dict())
    upstream = torch.randn(T, 4, 64).to(DEVICE, case.torch_dtype)
    return case, theirs, x, upstream, train(exact, x.cpu().double(), upstream.cpu().double())


def train(layer, x, upstream):
    """The output, and the gradients of x and of the weights."""
    x = x.clone().requires_grad_()
    output = layer(x)[0]
    found = torch.autograd.grad(output, [x, *layer.parameters()], upstream)
    names = ["x", *(name for name, _ in layer.named_parameters())]
    return output.detach(), dict(zip(names, found, strict=True))


def distance(got, truth):
    """Root mean square, which is less of a lottery than the largest error."""
    return float((got.double().cpu() - truth).square().mean().sqrt())


def ours_in(regime, case, theirs, monkeypatch):
    """fastrnn's layer with torch.nn's weights, in one regime."""
    from fastrnn_kernels import launch

    directions = ("forward", "backward")
    precision = "tf32" if case.torch_dtype == torch.float32 else "ieee"
    sizes = (case.cell, case.B, case.H, 1, case.torch_dtype, precision)
    skip_where_impossible(regime, *sizes, directions[: 1 + (case.mode == "train")])
    for name in directions:
        monkeypatch.setattr(kernels, name, functools.partial(getattr(launch, name), regime=regime))
    ours = bench_cases.layer(case, "triton")
    ours.load_state_dict(theirs.state_dict())
    # torch's layer is compared as it runs in training
    torch.use_deterministic_algorithms(False)
    return ours


@pytest.fixture
def tf32():
    settings = torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    before = [each.fp32_precision for each in settings]
    for each in settings:
        each.fp32_precision = "tf32"
    yield
    for each, value in zip(settings, before, strict=True):
        each.fp32_precision = value


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("T", [16, 128, 1024, 8192])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_no_further_from_float64_than_twice_torch(cell, dtype, T, regime, monkeypatch):
    """float32 is multiplied as TF32; cuDNN may, and where it does not its errors set no limit."""
    case, theirs, x, _, (truth, _) = layers(cell, dtype, T)
    ours = ours_in(regime, case._replace(mode="forward"), theirs, monkeypatch)
    with torch.no_grad():
        theirs_off, ours_off = (distance(layer(x)[0], truth) for layer in (theirs, ours))
    floor = TF32_UNIT if dtype == "float32" else 0.0
    assert ours_off <= max(2 * theirs_off, floor)


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("T", [16, 128, 1024, 8192])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_gradients_no_further_from_float64_than_twice_torchs(cell, dtype, T, regime, monkeypatch):
    """Of the input and of every weight, each by itself."""
    case, theirs, x, upstream, (_, truth) = layers(cell, dtype, T)
    ours = ours_in(regime, case, theirs, monkeypatch)
    found = [train(layer, x, upstream)[1] for layer in (theirs, ours)]
    further = {}
    for name, right in truth.items():
        theirs_off, ours_off = (distance(gradients[name], right) for gradients in found)
        # as for the output, but a gradient has any size
        size = float(right.square().mean().sqrt())
        floor = TF32_UNIT * size if dtype == "float32" else 0.0
        if not ours_off <= max(2 * theirs_off, floor):
            further[name] = (ours_off, theirs_off)
    assert further == {}
