"""The gallery's scripts about networks themselves, run small: what they show must be so."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import pytest
import torch

import fastrnn
from scripts import of_their_own, refused, script

SMALL = {
    "cliff": ["--grid", "3", "--steps", "3"],
    "gradient_flow": ["--steps", "5", "--hidden", "4", "--radii", "0.5,2"],
    "learned_initial_state": ["--steps", "3", "--length", "6", "--hidden", "4"],
    "jordan": ["--steps", "2", "--hidden", "3"],
    "echo_state": ["--steps", "300", "--hidden", "20", "--radii", "0.5"],
    "curvature": ["--steps", "1", "--length", "4", "--hidden", "2", "--turns", "2"],
    "relu_sparsity": ["--steps", "2", "--length", "4", "--hidden", "8"],
}

SLOW = {"relu_sparsity": [("times", (1.0, 1.0))], "curvature": [("check", (0.0, 1.0, 1.0))]}
"""Functions with tests of their own, and what they return where all the rest is run."""


@pytest.fixture(autouse=True)
def beginning():
    """Each test as if its scripts ran in a process of their own."""
    with of_their_own():
        yield


JIT_DEPRECATED = pytest.mark.filterwarnings(
    # torch.func.hessian imports what uses it
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)


def arguments(**given):
    return SimpleNamespace(**{"device": "cpu", "seed": 0, **given})


def untimed(text):
    """What is printed, less the times and the path."""
    return re.sub(r"[\d.]+ (us|ms|s)\b|picture: .*", "", text)


@pytest.mark.parametrize("name", SMALL)
def test_a_script_draws_and_says_the_same_for_a_seed(name, tmp_path, capsys, monkeypatch):
    for what, result in SLOW.get(name, ()):
        monkeypatch.setattr(script(name), what, lambda *given, result=result: result)
    monkeypatch.setattr(script("gallery"), "DPI", 30)
    path = tmp_path / "new" / f"{name}.png"
    told = []
    for seed in ("1", "1", "2"):
        assert script(name).main([*SMALL[name], "--seed", seed, "--out", str(path)]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        told.append(untimed(out))
        if len(told) == 1:
            assert path.read_bytes().startswith(b"\x89PNG")
            assert out.endswith(f"picture: {path}\n")
            monkeypatch.setattr(script(name), "draw", lambda *given: print("picture: none"))
    assert told[0] == told[1]
    assert (told[0] == told[2]) == (name == "cliff")  # where nothing is random


@pytest.mark.parametrize("name", SMALL)
def test_help_names_the_picture_and_what_one_sees(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        script(name).main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert f"{name}.png" in out
    assert "--seed" in out


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        *((name, ["--steps", "0"], "--steps: expected an integer of at least 1") for name in SMALL),
        ("cliff", ["--clip", "-1"], "--clip: expected a positive number, got '-1'"),
        ("cliff", ["--out", "picture.txt"], "--out: expected a file .png, .pdf or .svg"),
        ("cliff", ["--out", f"{__file__}/picture.png"], "--out: "),
        ("cliff", ["--seed", "9" * 30], "--seed: expected an integer of at least 0, got '999"),
        ("cliff", ["--device", "nonsense"], "--device: 'nonsense' cannot be used: "),
        ("gradient_flow", ["--radii", "1,x"], "--radii: expected a positive number, got 'x'"),
        ("echo_state", ["--steps", "200"], "--steps: expected more than 200, got 200"),
        ("jordan", ["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_wrong_arguments_are_one_line_and_status_2(name, options, told, capsys):
    err = refused(script(name).main, options, capsys)
    assert told in err
    assert err.count("\n") == 1


def sigmoid_unit():
    unit = fastrnn.RNN(1, 1, nonlinearity="sigmoid", dtype=torch.float64).requires_grad_(False)
    torch.nn.init.zeros_(unit.bias_hh_l0)
    return unit


def test_cliff_the_surface_is_that_of_the_equation():
    cliff = script("cliff")
    found = cliff.surface(sigmoid_unit(), 4)
    for row, b in enumerate(found.b.tolist()):
        for column, w in enumerate(found.w.tolist()):
            h = cliff.H0
            for _ in range(50):
                h = 1 / (1 + math.exp(-(w * h + b)))
            assert found.error[row, column].item() == pytest.approx((h - 0.7) ** 2, rel=1e-9)


def test_cliff_is_jumped_off_without_clipping_and_not_with_it():
    cliff = script("cliff")
    args = arguments(steps=60, lr=3.0)
    free, clipped = (cliff.descend(sigmoid_unit(), args, clip) for clip in (torch.inf, 0.1))
    assert free.norms.max() > 10
    assert free.weights.diff(dim=0).norm(dim=1).max() > 30
    assert clipped.weights.diff(dim=0).norm(dim=1).max() < 0.31
    assert free.errors[-10:].min() > 0.08
    assert clipped.errors[-10:].max() < 0.03


def test_gradient_flow_of_a_linear_unit_is_its_weights_power():
    flows = script("gradient_flow").linear_units([0.9, 1.0, 1.1], arguments(steps=65))
    for w, flow in zip((0.9, 1.0, 1.1), flows.values(), strict=True):
        want = torch.tensor([w ** (65 - t) for t in range(66)], dtype=torch.float64)
        torch.testing.assert_close(flow.h[0, 0], want, rtol=1e-12, atol=0)


def test_gradient_flow_vanishes_by_radius_and_by_forget_bias():
    module = script("gradient_flow")
    args, x = arguments(hidden=32), 0.3 * torch.randn(30, 4, 5)
    flows = [*module.tanh_networks([0.7, 1.5], x, args).values()]
    flows += module.lstms([0.0, 3.0], x, args).values()
    vanishing, growing, closed, opened = ((f.h[0, 0, 0] / f.h[0, 0, -1]).item() for f in flows)
    assert vanishing < 1e-3 < 0.1 < growing
    assert closed < 1e-5 < 0.01 < opened


def test_a_new_start_is_found_with_all_weights_frozen():
    module = script("learned_initial_state")
    args = arguments(length=12)
    model = module.Predictor(24)
    losses = module.train(model, module.HERE, 150, args)
    assert losses[-1] < 0.2 * losses[0]
    moved = module.error_by_step(model, module.THERE, args)[:5].mean()
    model.requires_grad_(False).initial.requires_grad_(True)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    module.train(model, module.THERE, 80, args)
    assert module.error_by_step(model, module.THERE, args)[:5].mean() < 0.7 * moved
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) != name.startswith("initial."), name


def test_jordan_networks_draw_alone_and_only_hidden_feedback_gets_past_a_crossing():
    jordan = script("jordan")
    plans, points = jordan.curves("cpu")
    circles, eights = [], []
    for hidden_feedback in (False, True):
        net = fastrnn.JordanRNN(4, 32, 2, hidden_feedback=hidden_feedback)
        losses = jordan.train(net, plans, points, arguments(steps=800, lr=1e-2))
        assert losses[-1] < 0.02 * losses[0]
        with torch.no_grad():
            alone, _ = net(plans, jordan.begin(net, points))
        errors = (alone - points).square().mean((0, 2)).sqrt().tolist()
        circles.append(errors[0])
        eights.append(errors[3])
    assert max(circles) < 0.35
    assert eights[1] < 0.3 < 0.5 < eights[0]


def test_the_echo_states_series_obeys_its_equation():
    module = script("echo_state")
    x = module.mackey_glass(400)
    assert x.std() > 0.15
    # by central differences at unit steps, whose error is that of the third derivative
    slope = (x[module.DELAY + 2 :] - x[module.DELAY : -2]) / 2
    old = x[1 : -module.DELAY - 1]
    right = 0.2 * old / (1 + old**10) - 0.1 * x[module.DELAY + 1 : -1]
    assert (slope - right).abs().max() < 0.01
    assert (slope - right).square().mean().sqrt() < 0.05 * slope.std()


def test_an_echo_state_network_goes_on_alone_and_keeps_nothing_for_gradients():
    module = script("echo_state")
    args = arguments(hidden=200)
    series = module.mackey_glass(1501 + module.ALONE) - 0.9
    given, true = series[:1501], series[1501:]
    errors = []
    for radius in (0.1, 0.9):
        rnn = module.make_reservoir(radius, args)
        radii = fastrnn.diagnostics.spectral_radius(rnn)
        assert radii["weight_hh_l0"] == pytest.approx(radius)
        assert not any(weight.requires_grad for weight in rnn.parameters())
        said = module.run_alone(rnn, *module.fit(rnn, given), given[-1])
        errors.append(((said - true)[: module.AHEAD].square().mean().sqrt() / true.std()).item())
    assert errors[1] < 0.05 < 0.15 < errors[0]
    assert module.kept_bytes(rnn, given[:50]) == 0
    assert module.kept_bytes(rnn.requires_grad_(True), given[:50]) > 50 * 200 * 8


@JIT_DEPRECATED
def test_curvature_products_are_the_hessians():
    error, found, exact = script("curvature").check(arguments())
    assert error < 1e-12
    assert found == pytest.approx(exact, rel=1e-6)


def test_conjugate_gradients_solve():
    module = script("curvature")
    A = torch.randn(6, 6, dtype=torch.float64)
    A = A @ A.T + torch.eye(6, dtype=torch.float64)
    b = torch.randn(6, dtype=torch.float64)
    solved = module.conjugate_gradients(lambda v: A @ v, 0.5, b, 20)
    torch.testing.assert_close(A @ solved + 0.5 * solved, b)


@JIT_DEPRECATED
def test_gauss_newton_products_are_those_of_the_jacobian():
    module = script("curvature")
    model, x = module.Recaller(2), module.noise(3, 4, arguments())
    loss, gradient, product = module.gauss_newton(model, x)
    weights = dict(model.named_parameters())
    rows = torch.func.jacrev(lambda w: torch.func.functional_call(model, w, (x,)))(weights)
    J = torch.cat([row.flatten(1) for row in rows.values()], 1)
    v = torch.randn(J.shape[1], dtype=torch.float64)
    torch.testing.assert_close(product(v), 2 / 4 * J.T @ (J @ v))
    wrong = model(x) - x[0, :, 0]
    torch.testing.assert_close(gradient, 2 / 4 * J.T @ wrong)
    torch.testing.assert_close(loss, wrong.square().mean())


def test_curvature_learns_in_few_steps_what_descent_does_not():
    module = script("curvature")
    args = arguments(steps=25, turns=15, damping=1e-3)
    x = module.noise(3, 6, args)
    torch.manual_seed(0)
    model = module.Recaller(4)
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    newton = module.hessian_free(model, x, args).losses
    model.load_state_dict(start)
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    first_order = module.first_order(model, x, adam, 100).losses
    assert newton[0] == first_order[0]
    assert newton[-1] < 1e-5 < 1e-3 < first_order[-1]


def test_sparsity_counts_zeros_and_whole_tiles():
    module = script("relu_sparsity")
    h = torch.ones(3, 2 * module.TILE, 4)
    h[..., 0] = 0  # in all rows
    h[:, 5, 1] = 0  # in one row
    h[1, : module.TILE, 2] = 0  # in a tile of one step
    zeros, tiles = module.shares(h)
    assert zeros == pytest.approx(h.eq(0).float().mean().item())
    assert tiles == pytest.approx((6 + 1) / (3 * 2 * 4))


def test_sparsity_the_product_skips_and_is_the_same():
    module = script("relu_sparsity")
    h, weight = torch.relu(torch.randn(5, 12)), torch.randn(12, 12)
    h[:, 3:7] = 0
    transposed = weight.t().contiguous()
    torch.testing.assert_close(module.skipping(h, transposed), h @ weight.t())
    assert all(time > 0 for time in module.times(h, weight, 2))
    transposed[3:7] = math.nan  # not even looked at
    assert module.skipping(h, transposed).isfinite().all()


def test_sparsity_the_network_learns_and_half_of_h_is_zero_at_first():
    module = script("relu_sparsity")
    history, h = module.train(module.Adder(40, "identity"), arguments(steps=120, length=8, lr=3e-3))
    assert (h >= 0).all()
    assert 0.3 < history.zeros[0] < 0.7
    assert history.losses[-1] < 0.3 * history.losses[0]
    assert all(tile <= zero for tile, zero in zip(history.tiles, history.zeros, strict=True))
