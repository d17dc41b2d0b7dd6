"""The search for launch configurations in Triton's interpreter, with a clock that is made up.

``TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_tune.py``; see test_interpreter.py.
"""

import os
import sys
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "run by: TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_tune.py",
        allow_module_level=True,
    )

import fastrnn
import fastrnn_kernels as kernels
from fastrnn import testing
from fastrnn.request import Request, Spec
from fastrnn_triton import cost, search, tuned

T, B, H = 2, 3, 20
REQUEST = Request(
    cell="lstm", seq_len=T, batch=B, input_size=4, hidden_size=H, proj_size=0, num_layers=1,
    bidirectional=True, bias=True, dropout=0.0, dtype=torch.float32, device="cpu", arch="",
    precision="tf32", needs_grad=False, training=False, varlen=False, compiling=False, threads=1,
)  # fmt: skip


@pytest.fixture
def ran(monkeypatch):
    """The configurations that kernels were launched with."""
    configs = []
    forward = kernels.forward

    def spy(*arguments, **options):
        configs.append(options.get("config"))  # None: the planner's choice
        return forward(*arguments, **options)

    monkeypatch.setattr(kernels, "forward", spy, raising=False)
    monkeypatch.setattr(search, "SLACK", 1e9)
    return configs


def look(ran, seconds, monkeypatch=None):
    lines = []

    def clock(call):
        call()
        return seconds(ran[-1])

    ((key, found),) = search.search(REQUEST, lines.append, device="cpu", clock=clock)
    return key, found, lines


def test_the_fastest_is_found_and_every_regime_is_tried(ran):
    wanted = kernels.ResidentConfig(16, 32, num_warps=8)
    key, found, lines = look(ran, lambda config: 1e-6 if config == wanted else 2e-6)
    assert key == tuned.Key("forward", "", "lstm", "float32", "tf32", H, B, 2, T, False)
    assert found.config == wanted
    assert found.microseconds == pytest.approx(1.0 / T)
    assert {config.regime for config in ran if config} == {"resident", "grid", "step"}
    assert lines[0].startswith("triton forward: 1 of ")
    assert "us a step with ResidentConfig" in lines[-1]


def test_the_way_back_is_searched_where_gradients_are_asked_for(ran, monkeypatch):
    configs = []
    backward = kernels.backward

    def spy(*arguments, **options):
        if options.get("config") is not None:
            configs.append(options["config"])
        return backward(*arguments, **options)

    monkeypatch.setattr(kernels, "backward", spy, raising=False)
    wanted = kernels.GridConfig(16, 8, 16, lanes=1, ahead=1, splits=2, num_warps=4)
    planning = sys.modules["fastrnn_kernels.plan"]  # the package has its function of that name
    every = planning.candidates

    def few(problem, limits, regime=None):
        return [
            config
            for config in every(problem, limits, regime)
            if config.regime != "grid" or config in (wanted, replace(wanted, num_warps=8))
        ]

    monkeypatch.setattr(planning, "candidates", few)

    def clock(call):
        call()
        return 1e-6 if configs[-1:] == [wanted] else 2e-6

    request = REQUEST._replace(needs_grad=True, hidden_size=32, bidirectional=False)
    _, (key, found) = search.search(request, lambda line: None, device="cpu", clock=clock)
    assert key == tuned.Key("backward", "", "lstm", "float32", "tf32", 32, B, 1, T, False)
    assert {config.regime for config in configs} == {"resident", "grid", "step"}
    assert found.config == wanted


def test_layers_at_once_are_searched_too(ran, monkeypatch):
    """In both passes, and against the layers run one after another."""
    monkeypatch.setattr(cost, "most_promising", lambda request: 3)
    planning = sys.modules["fastrnn_kernels.plan"]
    every = planning.candidates
    few = {
        "forward": [kernels.GridConfig(16, 4, 16, lanes=1, ahead=1, num_warps=4)],
        "backward": [kernels.GridConfig(16, 8, 16, lanes=1, ahead=1, splits=2, num_warps=4)],
    }

    def candidates(problem, limits, regime="step"):
        if problem.chained:
            return few[problem.direction]
        return list(every(problem, limits, regime))[:1]  # how they are searched: the tests above

    monkeypatch.setattr(planning, "candidates", candidates)
    request = REQUEST._replace(
        num_layers=4, needs_grad=True, hidden_size=16, bidirectional=False, precision="ieee"
    )
    lines = []
    found = dict(search.search(request, lines.append, device="cpu", clock=lambda call: 1e-6))
    chained = {key.direction: found[key].config for key in found if key.chained}
    assert {key.G for key in found if key.chained} == {3}
    assert chained == {direction: configs[0] for direction, configs in few.items()}
    assert any("forward, 3 layers at once" in line for line in lines)
    assert len(found) == 4
    # What is wrong about several layers alone is seen.
    sound = kernels.backward

    def faulty(*arguments, weight_chain=None, **options):
        made = sound(*arguments, weight_chain=weight_chain, **options)
        if weight_chain is not None:
            made.d_gates[0, 0, 0, 0] += 0.1
        return made

    monkeypatch.setattr(kernels, "backward", faulty, raising=False)
    with pytest.raises(RuntimeError, match=r"no launch configuration .* was right backward"):
        list(search.search(request, lines.append, device="cpu", clock=lambda call: 1e-6))


def test_one_that_is_wrong_or_fails_or_wavers_is_left_out(ran, monkeypatch):
    sound = kernels.forward
    calls = {}

    def faulty(*arguments, config=None, **options):
        made = sound(*arguments, config=config, **options)
        if config is None:
            return made
        calls[config] = calls.get(config, 0) + 1
        if config.regime == "resident":
            made.output[0, 0, 0, 0] += 0.1
        elif config.regime == "grid" and config.num_warps == 4:
            raise RuntimeError("too large to cooperate")
        elif config.regime == "grid":
            made.output[0, 0, 0, 0] += 1e-7 * calls[config]
        return made

    monkeypatch.setattr(kernels, "forward", faulty, raising=False)
    _, found, lines = look(ran, lambda config: 1e-6)
    assert found.config.regime == "step"
    said = "\n".join(lines)
    assert "ArithmeticError: another result than the step regime's" in said
    assert "ArithmeticError: another result the second time" in said
    assert "RuntimeError: too large to cooperate" in said


def test_the_backend_runs_what_was_found(ran, monkeypatch):
    config = kernels.GridConfig(16, 4, 16, lanes=1, ahead=1, num_warps=2)
    key = tuned.Key("forward", "", "lstm", "float32", "ieee", H, B, 2, T, False)
    monkeypatch.setitem(tuned._found, "", {key: tuned.Found(config, 1.0)})
    problem = testing.random_problem(
        Spec("lstm", 4, H, bidirectional=True), T, B, dtype=torch.float32
    )
    got = testing.run(problem, backend="triton", gradients=False)
    assert ran == [config]
    want = testing.run(problem, backend="reference", gradients=False)
    torch.testing.assert_close(got.output, want.output)
    # Another batch is another key, and so is one step, for which no weights are loaded on chip.
    layer = fastrnn.LSTM(4, H, bidirectional=True, backend="triton")
    layer(torch.randn(T, B + 1, 4))
    layer(torch.randn(1, B, 4))
    assert ran[1:] == [None, None]
