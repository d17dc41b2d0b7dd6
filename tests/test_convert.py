"""`convert`, `revert` and `conversion_report`."""

from __future__ import annotations

import copy
import warnings

import expecttest
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastrnn

X = torch.randn(5, 3, 4)


class Tagger(nn.Module):
    """Two layers of a kind each, one of them held twice, in containers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.encoder = nn.LSTM(4, 6, num_layers=2, bidirectional=True)
        self.blocks = nn.ModuleList([nn.RNN(12, 6, nonlinearity="relu"), nn.Linear(6, 6)])
        self.shared = nn.ModuleDict({"a": nn.LSTM(6, 6, proj_size=2)})
        self.shared["b"] = self.shared["a"]
        self.absent = None
        self.register_module("none", None)

    def forward(self, tokens):
        x, _ = self.encoder(self.embedding(tokens))
        x, _ = self.blocks[0](x)
        x = self.blocks[1](x)
        return self.shared["b"](self.shared["a"](x)[0].repeat(1, 1, 3))[0]


TOKENS = torch.arange(12).view(4, 3) % 7
PROJECTED_ON_CPU = "ignore:LSTM with projections is not supported with oneDNN"
pytestmark = pytest.mark.filterwarnings(PROJECTED_ON_CPU)


def recurrent_types(model):
    return {name: type(m) for name, m in model.named_modules(remove_duplicate=False)
            if isinstance(m, nn.RNNBase | fastrnn.LSTM | fastrnn.RNN)}  # fmt: skip


def test_swaps_every_layer_and_keeps_every_parameter():
    model = Tagger()
    before = dict(model.named_parameters())
    want = model(TOKENS)
    keys = list(model.state_dict())
    assert fastrnn.convert(model, backend="aten") is model
    assert recurrent_types(model) == {
        "encoder": fastrnn.LSTM,
        "blocks.0": fastrnn.RNN,
        "shared.a": fastrnn.LSTM,
        "shared.b": fastrnn.LSTM,
    }
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert list(model.state_dict()) == keys
    assert torch.equal(model(TOKENS), want)


def test_shared_layer_stays_shared():
    model = fastrnn.convert(Tagger())
    assert model.shared["a"] is model.shared["b"]


def test_revert_undoes_convert():
    model = Tagger()
    types, text = recurrent_types(model), repr(model)
    want = model(TOKENS)
    before = dict(model.named_parameters())
    assert fastrnn.revert(fastrnn.convert(model)) is model
    assert recurrent_types(model) == types
    assert repr(model) == text
    assert all(p is before[name] for name, p in model.named_parameters())
    assert model.shared["a"] is model.shared["b"]
    assert torch.equal(model(TOKENS), want)
    state = {name: set(vars(m)) for name, m in model.named_modules()}
    assert state == {name: set(vars(m)) for name, m in Tagger().named_modules()}


def test_convert_twice_changes_nothing_more():
    model = fastrnn.convert(Tagger(), backend="reference")
    layers = list(model.modules())
    assert fastrnn.convert(model) is model
    assert all(a is b for a, b in zip(model.modules(), layers, strict=True))
    assert model.encoder.backend == "reference"


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(4, 5),
        lambda: nn.RNN(4, 5, batch_first=True),
        lambda: nn.GRU(4, 5, 2, bidirectional=True, bias=False),
    ],
)
def test_the_model_itself(make):
    theirs = make()
    ours = fastrnn.convert(theirs, backend="aten")
    assert type(ours) is getattr(fastrnn, type(theirs).__name__)
    assert ours.weight_hh_l0 is theirs.weight_hh_l0
    assert torch.equal(ours(X)[0], theirs(X)[0])
    back = fastrnn.revert(ours)
    assert type(back) is type(theirs)
    assert torch.equal(back(X)[0], theirs(X)[0])


def test_a_model_with_nothing_to_swap():
    model = nn.Linear(3, 3)
    assert fastrnn.convert(model) is model
    assert str(fastrnn.conversion_report(model)) == "no recurrent layers"


def test_filter_sees_candidates_and_their_names():
    seen = []

    def only_encoder(module, name):
        seen.append((type(module), name))
        return name == "encoder"

    model = fastrnn.convert(Tagger(), filter_fn=only_encoder)
    assert seen == [(nn.LSTM, "encoder"), (nn.RNN, "blocks.0"), (nn.LSTM, "shared.a")]
    assert type(model.encoder) is fastrnn.LSTM
    assert type(model.blocks[0]) is nn.RNN
    assert type(model.shared["a"]) is nn.LSTM
    report = fastrnn.conversion_report(model, filter_fn=only_encoder)
    assert [layer.status for layer in report.layers] == ["fastrnn", "left", "left"]
    assert report.layers[1].reason == "filter_fn returned False"


def test_unknown_backend_changes_nothing():
    model = Tagger()
    with pytest.raises(fastrnn.BackendError, match="unknown backend 'warp'"):
        fastrnn.convert(model, backend="warp")
    assert type(model.encoder) is nn.LSTM


def test_optimizer_made_before_goes_on_after():
    def train(swap):
        torch.manual_seed(0)
        model = Tagger()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        losses = []
        for step in range(4):
            if step == 2 and swap:
                fastrnn.convert(model, backend="aten")
            optimizer.zero_grad()
            loss = model(TOKENS).square().sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    losses = train(swap=True)
    assert losses == train(swap=False)
    assert losses[3] < losses[2]


@pytest.mark.parametrize("swap", [fastrnn.convert, fastrnn.revert])
def test_everything_else_on_the_layer_is_kept(swap):
    layer = nn.LSTM(4, 5) if swap is fastrnn.convert else fastrnn.LSTM(4, 5)
    layer.eval()
    layer.note = "mine"
    layer.register_buffer("counter", torch.zeros(1))
    layer.extra = nn.Linear(2, 2)
    layer.bias_hh_l0.requires_grad_(False)
    layer.weight_hh_l0.grad = torch.ones_like(layer.weight_hh_l0)
    seen = []
    handles = [
        layer.register_forward_pre_hook(lambda module, args: seen.append("pre")),
        layer.register_forward_hook(lambda module, args, output: seen.append(type(module))),
        layer.register_full_backward_hook(lambda module, d_in, d_out: seen.append("backward")),
        layer.register_state_dict_post_hook(lambda module, *rest: seen.append("saved")),
        layer.register_load_state_dict_post_hook(lambda module, keys: seen.append("loaded")),
    ]
    swapped = swap(nn.Sequential(layer))[0]
    assert type(swapped) is not type(layer)
    assert not swapped.training
    assert swapped.note == "mine"
    assert swapped.counter is layer.counter
    assert swapped.extra is layer.extra
    assert not swapped.bias_hh_l0.requires_grad
    assert swapped.weight_hh_l0.grad is layer.weight_hh_l0.grad
    swapped(X.clone().requires_grad_())[0].sum().backward()
    swapped.load_state_dict(swapped.state_dict())
    assert seen == ["pre", type(swapped), "backward", "saved", "loaded"]
    for handle in handles:
        handle.remove()
    swapped(X)
    swapped.load_state_dict(swapped.state_dict())
    assert len(seen) == 5


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2

    def right_inverse(self, weight):
        return weight * 2


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_parametrized_layer(wrap):
    theirs = nn.LSTM(4, 5)
    parametrize.register_parametrization(theirs, "weight_ih_l0", Halved())
    wrap(theirs, "weight_hh_l0")
    want = theirs(X)[0]
    names = list(theirs.state_dict())
    ours = fastrnn.convert(theirs, backend="aten")
    assert isinstance(ours, fastrnn.LSTM)
    assert parametrize.is_parametrized(ours, "weight_hh_l0")
    assert list(ours.state_dict()) == names
    assert torch.equal(ours(X)[0], want)
    assert torch.equal(copy.deepcopy(ours)(X)[0], want)
    assert fastrnn.conversion_report(ours).layers[0].status == "fastrnn"
    back = fastrnn.revert(ours)
    assert isinstance(back, nn.LSTM)
    assert torch.equal(back(X)[0], want)
    for layer, kind in ((copy.deepcopy(ours), fastrnn.LSTM), (back, nn.LSTM)):
        for name in ("weight_ih_l0", "weight_hh_l0"):
            parametrize.remove_parametrizations(layer, name)
        assert type(layer) is kind
        torch.testing.assert_close(layer(X)[0], want)


def test_pruned_and_old_weight_norm_layers():
    pruned = nn.LSTM(4, 5)
    prune.random_unstructured(pruned, "weight_hh_l0", amount=0.4)
    normed = nn.LSTM(4, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(normed, "weight_hh_l0")
    for theirs in (pruned, normed):
        want = theirs(X)[0]
        ours = fastrnn.convert(theirs, backend="aten")
        assert type(ours) is fastrnn.LSTM
        assert torch.equal(ours(X)[0], want)
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.mul_(2)
        assert not torch.equal(ours(X)[0], want)
        assert torch.equal(fastrnn.revert(ours)(X)[0], ours(X)[0])


def test_revert_forgets_what_changes_no_number():
    model = nn.Sequential(fastrnn.LSTM(4, 5, final_only=True, recompute=3))
    want = model[0](X)[1]
    fastrnn.revert(model)
    assert type(model[0]) is nn.LSTM
    torch.testing.assert_close(model[0](X)[1], want)


def test_revert_swaps_cells():
    model = nn.ModuleList(
        [fastrnn.LSTMCell(4, 5), fastrnn.RNNCell(4, 5, nonlinearity="relu"), fastrnn.GRUCell(4, 5)]
    )
    want = [cell(X[0]) for cell in model]
    fastrnn.revert(model)
    assert [type(cell) for cell in model] == [nn.LSTMCell, nn.RNNCell, nn.GRUCell]
    torch.testing.assert_close([cell(X[0]) for cell in model], want)


def test_swapped_back_layer_moves_and_pickles():
    layer = fastrnn.revert(fastrnn.convert(nn.LSTM(4, 5, 2, bidirectional=True))).double()
    assert layer._flat_weights[0] is layer.weight_ih_l0
    other = copy.deepcopy(layer)
    assert torch.equal(other(X.double())[0], layer(X.double())[0])


def test_report_reads_as_a_list():
    model = Tagger()
    model.decoder = nn.GRUCell(4, 4)
    model.own = fastrnn.CellRNN("peephole_lstm", 4, 4)
    fastrnn.convert(model, filter_fn=lambda module, name: name != "blocks.0")
    expecttest.TestCase().assertExpectedInline(
        str(fastrnn.conversion_report(model)),
        """\
encoder: LSTM, fastrnn
blocks.0: RNN, convertible
shared.a, shared.b: LSTM, fastrnn
decoder: GRUCell, left: a single time step gains nothing from a backend
own: CellRNN, fastrnn""",
    )
    report = fastrnn.conversion_report(nn.LSTM(4, 5))
    assert str(report) == "(the model itself): LSTM, convertible"
