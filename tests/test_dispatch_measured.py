"""Which backend is chosen where some were measured: with backends that do nothing."""

from __future__ import annotations

import math

import torch

from fake_backends import REQUEST, Fake, chosen
from fastrnn import dispatch, measured
from fastrnn.backend import StackBackend
from fastrnn.dispatch import decide, use_backend
from fastrnn.graph_decision import decide_constant
from fastrnn.request import Cost


def measure(request=REQUEST, **seconds):
    """Take backends for measured, from now on."""
    measured.remember(request, seconds, dict.fromkeys(seconds, "fakes 1"), keep=False)
    dispatch.clear_decisions()


def test_what_was_measured_replaces_the_estimates(use):
    use(Fake("a", 1), Fake("b", 2), Fake("c", 0, ["cannot"]))
    assert chosen() == ("a", "lowest estimated cost")
    measure(a=0.2, b=0.1)
    assert chosen() == ("b", "lowest estimated cost")
    lines = decide(REQUEST).explain().splitlines()
    assert lines[2].startswith("  - a: can run, estimated 200,000.0 us (measured on this machine: ")
    assert lines[3].startswith("  * b: can run, estimated 100,000.0 us (measured on this machine: ")
    assert " us at T=7 B=2, 20" in lines[3]
    assert lines[4] == "  - c: cannot run: cannot"
    assert chosen(request=REQUEST._replace(batch=99))[0] == "a"


def test_measured_and_estimated_costs_do_not_compete(use):
    use(Fake("a", 1), Fake("b", 2))
    measure(b=0.1)
    decision = decide(REQUEST)
    assert decision.backend == "a"
    assert [c.cost.why for c in decision.candidates] == ["1 by decree", "2 by decree"]


def test_who_charges_infinity_is_not_chosen_for_what_was_measured(use):
    use(Fake("a", 1), Fake("b", 2), Fake("never", math.inf))
    measure(a=0.2, b=0.1)
    assert chosen()[0] == "b"
    measure(never=1e-9)
    assert chosen()[0] == "b"
    assert decide(REQUEST).candidates[2].cost.seconds == math.inf


def test_who_is_named_or_favoured_stays_whatever_was_measured(use, monkeypatch):
    registry = use(Fake("a", 1), Fake("b", 2))
    measure(a=0.2, b=0.1)
    assert chosen("a") == ("a", "argument")
    with use_backend("a"):
        assert chosen() == ("a", "use_backend context")
    offered = []

    def policy(request, able):
        offered.extend((c.name, c.cost.seconds) for c in able)
        return "a", "politician"

    monkeypatch.setattr(registry, "policy", policy)
    dispatch.clear_decisions()
    assert chosen() == ("a", "policy of plugin politician")
    assert offered == [("a", 0.2), ("b", 0.1)]


def test_for_another_machine_nothing_was_measured(use):
    use(Fake("a", 1), Fake("b", 2))
    measure(a=0.2, b=0.1)
    assert decide(REQUEST, here=False).backend == "a"
    assert decide(REQUEST).backend == "b"


def test_forgetting_decisions_forgets_no_measurement(use):
    use(Fake("a", 1), Fake("b", 2))
    measure(a=0.2, b=0.1)
    dispatch.clear_decisions()
    assert chosen()[0] == "b"
    dispatch.clear_cache()
    assert chosen()[0] == "a"


class FakeStack(Fake, StackBackend):
    def run(self, call):
        raise NotImplementedError


def name_in_a_graph():
    graph = REQUEST._replace(seq_len=None, batch=None, compiling=True, threads=0)
    return decide_constant("auto", None, *graph)[0]


def test_a_graph_goes_by_what_was_measured(use):
    mine = REQUEST._replace(threads=torch.get_num_threads())
    use(Fake("a", 1), Fake("b", 2), FakeStack("unrolled", 100))
    assert name_in_a_graph() == "a"
    measure(mine, a=0.2, b=0.1)  # and not the third
    assert name_in_a_graph() == "a"
    measure(mine, unrolled=0.01)
    assert name_in_a_graph() == "b"
    assert chosen(request=mine)[0] == "unrolled"


def test_a_stack_in_a_graph_costs_no_less_than_it_charges_and_no_less_than_measured(use):
    mine = REQUEST._replace(threads=torch.get_num_threads())
    graph = REQUEST._replace(seq_len=None, batch=None, compiling=True, threads=0)
    use(Fake("a", 1), FakeStack("stack", 100))
    measure(mine, a=0.2, stack=0.01)
    assert decide(graph).candidates[1].cost == Cost(100, "100 by decree")
    measure(mine, stack=1e3)
    assert decide(graph).candidates[1].cost.why.startswith("measured on this machine: ")
