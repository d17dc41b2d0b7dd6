"""What the conformance suite cannot know: that it is installed, found, and honest about itself."""

import warnings

import pytest
import torch

import fastrnn
from fastrnn.plugins import registry


def test_installed_means_found():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a plugin that is refused is a warning
        backends = registry().backends
    assert "numpy" in backends
    (record,) = (record for record in registry().plugins if record.name == "numpy")
    assert (record.distribution, record.state) == ("fastrnn-numpy", "loaded")


@pytest.mark.parametrize("layer", ["LSTM", "RNN"])
def test_it_trains_what_torch_trains(layer):
    torch.manual_seed(0)
    theirs = getattr(torch.nn, layer)(3, 4, num_layers=2, bidirectional=True)
    ours = getattr(fastrnn, layer)(3, 4, num_layers=2, bidirectional=True, backend="numpy")
    ours.load_state_dict(theirs.state_dict())
    x, gradients = torch.randn(5, 2, 3), []
    for module in (ours, theirs):
        output, _ = module(x)
        gradients.append(torch.autograd.grad(output.square().sum(), list(module.parameters())))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"dtype": torch.bfloat16}, "dtype is torch.bfloat16; needs float32 or float64"),
        ({"proj_size": 2}, "proj_size is 2; needs 0"),
    ],
)
def test_what_it_cannot_run_it_says(how, why):
    layer = fastrnn.LSTM(3, 4, backend="numpy", **how)
    with pytest.raises(fastrnn.BackendError, match=f"numpy: cannot run: {why}"):
        layer(torch.randn(5, 2, 3, dtype=how.get("dtype", torch.float32)))
