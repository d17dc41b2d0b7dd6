"""Products of few columns, which a CPU takes turned: where layers have few inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fastrnn
from fastrnn import products


@pytest.fixture
def turned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the results that were taken turned."""
    found: list[tuple[int, ...]] = []
    own = products._turned

    def noting(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        made = own(a, b)
        found.append(tuple(made.shape))
        return made

    monkeypatch.setattr(products, "_turned", noting)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((200, 64), (64, 2)),
        ((3, 70, 64), (64, 3)),  # all rows in one product
        ((2, 200, 64), (2, 64, 8)),
        ((64, 301), (301, 4)),
    ],
)
@pytest.mark.parametrize("stored_turned", [False, True])
def test_values(
    a: tuple[int, ...], b: tuple[int, ...], stored_turned: bool, dtype: torch.dtype, turned: Any
) -> None:
    first, second = torch.randn(a, dtype=dtype), torch.randn(b, dtype=dtype)
    if stored_turned:
        first = first.mT.contiguous().mT
    made = products.product(first, second)
    assert turned[-1] == (*a[:-1], b[-1])
    assert made.is_contiguous()
    want = np.matmul(first.double().numpy(), second.double().numpy())
    # sums of at most 301 products of about one each
    bound = 301 * torch.finfo(dtype).eps * 10
    np.testing.assert_allclose(made.numpy(), want, rtol=0, atol=bound)


@pytest.mark.parametrize(
    ("a", "b", "dtype"),
    [
        ((200, 64), (64, 1), torch.float32),
        ((200, 64), (64, 9), torch.float32),
        ((20, 64), (64, 4), torch.float32),  # too little work
        ((200, 64), (64, 4), torch.bfloat16),  # not MKL's
    ],
)
def test_others_are_taken_plainly(a: Any, b: Any, dtype: torch.dtype, turned: Any) -> None:
    products.product(torch.ones(a, dtype=dtype), torch.ones(b, dtype=dtype))
    assert not turned


def test_columns_that_lie_one_after_another_are_taken_plainly(turned: Any) -> None:
    products.product(torch.ones(200, 64), torch.ones(4, 64).mT)
    assert not turned


@pytest.mark.parametrize("backend", ["reference", "rows"])
@pytest.mark.parametrize("kind", [fastrnn.RNN, fastrnn.LSTM, fastrnn.GRU])
def test_layers_of_few_inputs(kind: Any, backend: str, turned: list[tuple[int, ...]]) -> None:
    """The gradients of x and W_ih, and the values of both, against float64 of torch."""
    torch.manual_seed(0)
    own = {fastrnn.RNN: torch.nn.RNN, fastrnn.LSTM: torch.nn.LSTM, fastrnn.GRU: torch.nn.GRU}[kind]
    truth, layer = own(3, 32, dtype=torch.float64), kind(3, 32, backend=backend)
    layer.load_state_dict(truth.state_dict())
    x = torch.randn(20, 16, 3)
    found = []
    for each, values in ((truth, x.double()), (layer, x)):
        inputs = values.clone().requires_grad_()
        each(inputs)[0].square().mean().backward()
        found.append((inputs.grad, each.weight_ih_l0.grad))
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)
    rows = len(layer.weight_ih_l0)
    assert {shape[-1] for shape in turned} == {3}
    # a GRU of the reference has matrices of four rows for a unit; see `fastrnn_cells.gru`
    assert any(shape[-2] in (rows, 32 * 4) for shape in turned)
    assert any(np.prod(shape[:-1]) == 320 for shape in turned)
