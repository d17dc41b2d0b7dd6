"""Which backend is chosen, by which rule: pure functions, tested with backends that do nothing."""

from __future__ import annotations

import logging
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_backends import REQUEST, Fake, FakeRegistry, chosen
from fastrnn import dispatch
from fastrnn.dispatch import BackendError, current_override, decide, use_backend
from fastrnn.request import Cost


def test_the_lowest_cost_wins_and_the_first_of_equals(use):
    use(Fake("slow", 2), Fake("fast", 1), Fake("as-fast", 1), Fake("none", 0, ["cannot"]))
    assert chosen() == ("fast", "lowest estimated cost")


def test_policy_beats_cost(use):
    use(Fake("a", 1), Fake("b", 2), policy="b")
    assert chosen() == ("b", "policy of plugin politician")


def test_policy_is_offered_only_what_can_run(use):
    registry = use(Fake("a", 3), Fake("b", 2, ["no"]), Fake("c", 1))
    offered = []
    registry.policy = lambda request, able: offered.append((request, able))
    decide(REQUEST)
    ((request, able),) = offered
    assert request == REQUEST
    assert [(c.name, c.cost.seconds, c.reasons) for c in able] == [("a", 3, ()), ("c", 1, ())]


def test_the_environment_beats_policy(use, monkeypatch):
    use(Fake("a", 1), Fake("b", 2), Fake("c", 3), policy="b")
    monkeypatch.setenv("FASTRNN_BACKEND", "c")
    assert chosen() == ("c", "environment variable FASTRNN_BACKEND")


def test_the_context_beats_the_environment(use, monkeypatch):
    use(Fake("a", 1), Fake("b", 2), Fake("c", 3))
    monkeypatch.setenv("FASTRNN_BACKEND", "c")
    with use_backend("b"):
        assert chosen() == ("b", "use_backend context")
    assert chosen() == ("c", "environment variable FASTRNN_BACKEND")


def test_the_argument_beats_the_context(use, monkeypatch):
    use(Fake("a", 1), Fake("b", 2), Fake("c", 3))
    monkeypatch.setenv("FASTRNN_BACKEND", "c")
    with use_backend("b"):
        assert chosen("a") == ("a", "argument")


def test_the_environment_is_read_once(use, monkeypatch):
    use(Fake("a", 1), Fake("b", 2))
    assert chosen() == ("a", "lowest estimated cost")
    monkeypatch.setenv("FASTRNN_BACKEND", "b")
    other = REQUEST._replace(batch=3)
    assert chosen(request=other) == ("a", "lowest estimated cost")
    dispatch.clear_cache()
    assert chosen(request=other)[0] == "b"


def test_an_empty_environment_variable_is_unset(use, monkeypatch):
    use(Fake("a", 1))
    monkeypatch.setenv("FASTRNN_BACKEND", "")
    assert chosen() == ("a", "lowest estimated cost")


@pytest.mark.parametrize("names", ["nope", "a,nope", "nope,auto", "", "A", "a,,b"])
def test_an_unknown_name_is_an_error_that_lists_the_known(use, monkeypatch, names):
    use(Fake("a"), Fake("b"))
    listing = r"unknown backend '.*'; expected 'auto' or(.|\n)*- a: the fake called a\n  - b: "
    with pytest.raises(BackendError, match=listing):
        decide(REQUEST, names)
    with pytest.raises(BackendError, match=listing), use_backend(names):
        pytest.fail("the context was entered")
    assert current_override() is None
    if names:
        monkeypatch.setenv("FASTRNN_BACKEND", names)
        dispatch.clear_cache()
        with pytest.raises(BackendError, match=listing):
            decide(REQUEST)


@pytest.mark.parametrize("names", [None, 3, ["a"]])
def test_names_must_be_a_string(use, names):
    use(Fake("a"))
    with pytest.raises(TypeError, match="backend should be of type str, got: "), use_backend(names):
        pytest.fail("the context was entered")


def test_a_named_backend_that_cannot_run_says_every_reason(use):
    use(Fake("a"), Fake("b", reasons=["too wide", "too long"], here=["no GPU"]))
    with pytest.raises(BackendError) as caught:
        decide(REQUEST, "b")
    assert str(caught.value).splitlines() == [
        "backend 'b' (from argument) cannot run this request",
        f"request: {REQUEST.describe()}",
        "  - a: can run, estimated 1,000,000.0 us (1 by decree)",
        "  - b: cannot run: no GPU; too wide; too long",
    ]


@pytest.mark.parametrize("rule", ["context", "environment"])
def test_names_from_elsewhere_are_refused_likewise(use, monkeypatch, rule):
    use(Fake("a"), Fake("b", reasons=["too wide"]))
    if rule == "environment":
        monkeypatch.setenv("FASTRNN_BACKEND", "b")
        with pytest.raises(BackendError, match=r"'b' \(from environment variable FASTRNN_BACKEND"):
            decide(REQUEST)
        return
    with use_backend("b"), pytest.raises(BackendError, match=r"'b' \(from use_backend context\)"):
        decide(REQUEST)


def test_no_backend_at_all(use):
    use(Fake("a", reasons=["too wide"]), Fake("b", here=["no GPU"]))
    with pytest.raises(BackendError, match=r"no backend can run(.|\n)*too wide(.|\n)*no GPU"):
        decide(REQUEST)


def test_names_are_tried_in_order(use):
    use(Fake("a", 1), Fake("b", 2, ["no"]), Fake("c", 3))
    assert chosen("b,c") == ("c", "argument")
    assert chosen(" c , a ") == ("c", "argument")
    with pytest.raises(BackendError, match="'b,b'"):
        decide(REQUEST, "b,b")


def test_auto_after_a_name_falls_back(use):
    use(Fake("a", 1), Fake("b", 2, ["no"]), Fake("c", 0.5))
    assert chosen("b,auto") == ("c", "lowest estimated cost")
    assert chosen("a,auto") == ("a", "argument")
    assert chosen("auto,a") == ("c", "lowest estimated cost")


def test_contexts_nest_and_end_with_exceptions(use):
    use(Fake("a", 1), Fake("b", 2), Fake("c", 3))
    with use_backend("b"):
        with pytest.raises(ZeroDivisionError, match="c"), use_backend("c"):
            raise ZeroDivisionError(chosen()[0])
        assert chosen()[0] == "b"
        with use_backend("auto"):
            assert chosen() == ("a", "lowest estimated cost")
    assert current_override() is None
    assert chosen()[0] == "a"


def test_a_context_belongs_to_its_thread(use):
    use(Fake("a", 1), Fake("b", 2), Fake("c", 3))
    inside, seen = threading.Barrier(2), {}

    def other():
        with use_backend("c"):
            inside.wait()
            seen["other"] = chosen()[0]
            inside.wait()

    thread = threading.Thread(target=other)
    thread.start()
    with use_backend("b"):
        inside.wait()
        seen["here"] = chosen()[0]
        inside.wait()
    thread.join()
    assert seen == {"here": "b", "other": "c"}


@pytest.mark.parametrize("kind", [LookupError, SystemExit])
@pytest.mark.parametrize("method", ["unavailable", "can_run", "cost"])
def test_a_backend_that_raises_cannot_run_and_says_why(use, monkeypatch, method, kind):
    broken = Fake("broken", 0)

    def fail(*_):
        raise kind("no\n  table")

    monkeypatch.setattr(broken, method, fail)
    use(Fake("a", 1), broken)
    decision = decide(REQUEST)
    assert decision.backend == "a"
    assert f"broken: cannot run: it raised {kind.__name__}: no table" in decision.explain()


def test_a_backend_that_is_not_available_is_not_asked_for_its_cost(use):
    use(Fake("a", 1), Fake("b", 0, here=["no GPU"], error=AssertionError("asked")))
    assert "b: cannot run: no GPU" in str(decide(REQUEST))


def test_a_decision_explains_itself(use, caplog):
    use(Fake("a", 2e-3), Fake("b", 1, ["too wide"]))
    with caplog.at_level(logging.DEBUG, "fastrnn"):
        decision = decide(REQUEST)
    assert decision.explain().splitlines() == [
        "request: lstm T=7 B=2 I=3 H=4, float32 on cpu, forward only, eval mode",
        "backend: a (lowest estimated cost)",
        "  * a: can run, estimated 2,000.0 us (0.002 by decree)",
        "  - b: cannot run: too wide",
    ]
    assert caplog.messages == [decision.explain()]


def test_a_decision_is_made_once(use):
    backend = Fake("a")
    use(backend)
    assert decide(REQUEST) is decide(REQUEST._replace())
    assert backend.asked == 1
    decide(REQUEST._replace(batch=9))
    assert backend.asked == 2


def test_a_decision_is_made_anew_after_plugins_change(use):
    registry = use(Fake("a", 1))
    assert chosen()[0] == "a"
    registry.backends["b"], registry.generation = Fake("b", 0.5), 1
    assert chosen()[0] == "b"


def test_the_cache_is_bounded(use, monkeypatch):
    monkeypatch.setattr(dispatch, "_CACHE_LIMIT", 10)
    use(Fake("a"))
    for steps in range(1, 100):
        assert decide(REQUEST._replace(seq_len=steps)).request.seq_len == steps
        assert len(dispatch._cache) <= 10


NAMES = ("a", "b", "c")
PREFERENCE = st.lists(st.sampled_from((*NAMES, "auto")), min_size=1, max_size=4).map(",".join)


def expected(able, costs, rules, policy):
    """The rules once more, in other words: what is chosen, or None for an error."""
    preference = next((words.split(",") for words in rules if words not in (None, "auto")), [])
    named = preference[: preference.index("auto")] if "auto" in preference else preference
    for name in named:
        if name in able:
            return name
    if (preference and "auto" not in preference) or not able:
        return None
    return policy if policy in able else min(able, key=lambda name: costs[name])


@given(
    able=st.sets(st.sampled_from(NAMES)),
    costs=st.permutations(range(1, 4)),
    argument=PREFERENCE,
    context=st.none() | PREFERENCE,
    environment=st.none() | PREFERENCE,
    policy=st.none() | st.sampled_from(NAMES),
)
def test_the_rules_hold_in_every_combination(able, costs, argument, context, environment, policy):
    costs = dict(zip(NAMES, costs, strict=True))
    registry = FakeRegistry(
        *(Fake(name, costs[name], [] if name in able else ["no"]) for name in NAMES),
        policy=policy if policy in able else None,
    )
    able = [name for name in NAMES if name in able]
    want = expected(able, costs, (argument, context, environment), policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "registry", lambda: registry)
        patch.setattr(dispatch, "environment_backend", lambda: environment)
        got = None
        try:
            if context is None:
                got = dispatch.decide_anew(REQUEST, argument, None, True).backend
            else:
                with use_backend(context):
                    got = dispatch.decide_anew(REQUEST, argument, current_override(), True).backend
        except BackendError:
            pass
    assert got == want


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("no", "its reasons are 'no', expected a list of non-empty strings"),
        (False, "its reasons are False"),
        ([""], r"its reasons are \[''\]"),
        ([1], r"its reasons are \[1\]"),
    ],
)
def test_reasons_that_are_none_are_a_reason_themselves(use, answer, says):
    fake = Fake("odd")
    fake.can_run = lambda request: answer
    use(fake, Fake("good", 5))
    decision = decide(REQUEST)
    assert decision.backend == "good"
    with pytest.raises(BackendError, match=says):
        decide(REQUEST, "odd")


@pytest.mark.parametrize("answer", [None, 1.0, (1.0, "why"), Cost(float("nan"), ""), Cost(-1, "")])
def test_a_cost_that_is_none_is_a_reason(use, answer):
    fake = Fake("odd")
    fake.cost = lambda request: answer
    use(fake, Fake("good", 5))
    assert decide(REQUEST).backend == "good"
    with pytest.raises(BackendError, match=r"its cost is .*, expected a Cost with seconds"):
        decide(REQUEST, "odd")


def test_for_another_machine_what_this_one_lacks_does_not_count(use):
    use(Fake("gpu", 1, here=["no GPU here"]), Fake("cpu", 2))
    assert decide(REQUEST).backend == "cpu"
    assert decide(REQUEST, here=False).backend == "gpu"
    assert decide(REQUEST).backend == "cpu"


def test_a_misspelt_environment_variable_is_named(use, monkeypatch):
    use(Fake("a"))
    monkeypatch.setenv("FASTRNN_BACKEND", "aa")
    with pytest.raises(BackendError, match="from environment variable FASTRNN_BACKEND: unknown"):
        decide(REQUEST)
