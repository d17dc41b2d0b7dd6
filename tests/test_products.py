"""Who multiplies: torch's BLAS or Triton, by torch's settings, the precision asked for, the GPU.

No GPU is needed: what is asked about a tensor is its dtype and its device.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastrnn import products as host
from fastrnn.backend import Layer, OutputGradients, RecurrenceBackend, Wanted
from fastrnn_reference.backend import ReferenceBackend
from fastrnn_triton import TritonBackend, products

SETTINGS = ("ieee", "tf32", "none")
PRECISIONS = ("ieee", "tf32", "tf32x3")
GPUS: dict[str, dict[str, Any]] = {
    "H200": {"major": 9},
    "T4": {"major": 7},
    "MI300X": {"gcnArchName": "gfx942:sramecc+:xnack-"},
    "MI250X": {"gcnArchName": "gfx90a:sramecc+:xnack-"},
}


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Leave torch's settings as they were."""
    matmul = torch.backends.cuda.matmul
    before = torch.backends.fp32_precision, matmul.fp32_precision
    yield
    torch.backends.fp32_precision, matmul.fp32_precision = before


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a made-up GPU, which device 0 is."""
    name = getattr(request, "param", "H200")
    properties = SimpleNamespace(**GPUS[name])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.version, "hip", "7.0" if name.startswith("MI") else None)
    products._has_tf32.cache_clear()
    yield name
    products._has_tf32.cache_clear()


def on_gpu(dtype: torch.dtype = torch.float32) -> Any:
    return SimpleNamespace(dtype=dtype, device=torch.device("cuda", 0))


def by_torch(precision: str, dtype: torch.dtype = torch.float32) -> bool:
    """Whether `TritonBackend.matmul` goes to torch, checked to go to exactly one place."""
    went: list[str] = []

    def torchs(self: object, *arguments: object, **options: object) -> None:
        went.append("torch")

    def ours(*arguments: object) -> None:
        assert arguments[3] == precision
        went.append("triton")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecurrenceBackend, "matmul", torchs)
        patch.setattr(products, "multiply", ours)
        TritonBackend().matmul(on_gpu(dtype), on_gpu(dtype), precision=precision)
    (where,) = went
    return where == "torch"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("gpu", ["H200", "MI300X"], indirect=True)
def test_float32_goes_to_torch_only_where_the_precisions_agree(
    gpu: str, setting: str, precision: str
) -> None:
    torch.backends.fp32_precision = "none"
    torch.backends.cuda.matmul.fp32_precision = setting
    assert by_torch(precision) is (precision == {"none": "ieee"}.get(setting, setting))


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_unset_precision_is_that_of_all_backends(gpu: str, setting: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.backends.fp32_precision = setting
    assert by_torch("tf32") is (setting == "tf32")
    assert by_torch("ieee") is (setting != "tf32")


@pytest.mark.parametrize("name", ["highest", "high", "medium"])
def test_the_older_names_of_the_setting_count(gpu: str, name: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        assert by_torch("ieee") is (name == "highest")
        assert by_torch("tf32") is (name != "highest")
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("gpu", ["MI250X", "T4"], indirect=True)
def test_without_tf32_torch_is_as_good(gpu: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert by_torch("tf32")
    assert by_torch("ieee")
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert by_torch("tf32")
    assert not by_torch("ieee")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_always_go_to_torch(gpu: str, dtype: torch.dtype) -> None:
    for setting, precision in itertools.product(SETTINGS, PRECISIONS):
        torch.backends.cuda.matmul.fp32_precision = setting
        assert by_torch(precision, dtype)


def test_the_cpu_always_goes_to_torch() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert products.torch_will_do(torch.zeros(2, 2), "ieee")


def test_the_setting_is_read_and_never_written(gpu: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    by_torch("ieee")
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


@pytest.mark.parametrize(
    ("a", "b", "add"),
    [((2, 3, 4), (4, 5), (5,)), ((3, 4), (4, 5), (3, 5)), ((2, 3, 4), (2, 4, 5), (2, 1, 5))],
    ids=["row", "matrix", "batched"],
)
def test_both_ways_take_the_same_arguments(
    monkeypatch: pytest.MonkeyPatch,
    a: tuple[int, ...],
    b: tuple[int, ...],
    add: tuple[int, ...],
) -> None:
    def kernel(
        a: torch.Tensor, b: torch.Tensor, *, bias: torch.Tensor | None = None, precision: str
    ) -> torch.Tensor:
        assert precision == "tf32"
        assert bias is None or bias.shape == (*b.shape[:-2], b.shape[-1])
        return a @ b if bias is None else a @ b + bias.unsqueeze(-2)

    monkeypatch.setattr(products, "_kernel", lambda: kernel)
    x, y, z = torch.randn(a), torch.randn(b), torch.randn(add)
    for given in (z, None):
        got = products.multiply(x, y, given, "tf32")
        torch.testing.assert_close(got, host.product(x, y, given))


@pytest.mark.parametrize("own_inputs", [False, True], ids=["shared", "own"])
def test_every_product_of_a_layer_goes_through_the_backend(
    monkeypatch: pytest.MonkeyPatch, own_inputs: bool
) -> None:
    seen: list[str] = []
    original = RecurrenceBackend.matmul

    def spy(self: Any, *operands: Any, precision: str) -> torch.Tensor:
        seen.append(precision)
        return original(self, *operands, precision=precision)

    monkeypatch.setattr(RecurrenceBackend, "matmul", spy)
    T, B, G, I, H = 4, 2, 2, 3, 5
    layer = Layer(
        cell="rnn_tanh",
        x=torch.randn(T, B, G, I) if own_inputs else torch.randn(T, B, I),
        weight_ih=torch.randn(G, H, I),
        weight_hh=torch.randn(G, H, H),
        bias=torch.randn(G, H),
        h0=torch.randn(G, B, H),
        c0=None,
        weight_hr=None,
        lengths=None,
        reverse=(False, True),
        precision="tf32x3",
        save=True,
    )
    backend = ReferenceBackend()
    output, h_n, _, saved, _ = backend.layer_forward(layer)
    assert seen == ["tf32x3"]  # the projection
    gradients = OutputGradients(torch.randn_like(output), torch.randn_like(h_n), None)
    backend.layer_backward(gradients, layer, output, saved, Wanted(*[True] * 7))
    # dx, dW_ih, and for each direction dW_hh in two parts
    assert seen == ["tf32x3"] * (1 + 2 + 2 * G)
