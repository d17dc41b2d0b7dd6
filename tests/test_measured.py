"""What is believed of what was measured."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastrnn import measured, plugins, roofline
from fastrnn.discovery import PluginRecord
from fastrnn.request import Candidate, Cost, Request
from measured_cases import REQUEST, SECONDS, VERSIONS, read_anew, remember, seconds


def test_only_what_a_version_is_known_of_is_kept():
    remember(versions={"a": "dist 1"})
    assert read_anew(able={"a": "dist 1"}) == {"a": 3e-3}
    assert read_anew(able={"a": "dist 1", "b": ""}) == {}
    remember(seconds={"c": 1.0}, versions={})
    assert read_anew(able={"c": ""}) == {}


def test_what_turns_out_wrong_is_forgotten():
    remember()
    remember(seconds={"b": None})
    for found in (seconds, read_anew):
        assert found() == {}
        assert found(able={"a": "dist 1"}) == {"a": 3e-3}
    remember(seconds={"a": None, "c": None})
    assert read_anew(able={"a": "dist 1"}) == {}
    assert list(measured.store("cpu", "").records()) == []
    remember(seconds={"a": None})  # of what nothing is known
    assert list(measured.store("cpu", "").records()) == []


def test_another_version_of_a_backend_has_not_been_measured():
    remember()
    assert seconds(able={"a": "dist 1", "b": "dist 2"}) == {}
    assert seconds(able={"a": "dist 1", "b": "other 1"}) == {}
    assert seconds(able={"a": "dist 1"}) == {"a": 3e-3}
    remember(seconds={"b": 2e-3}, versions={"b": "dist 2"})
    assert seconds(able={"a": "dist 1", "b": "dist 2"}) == {"a": 3e-3, "b": 2e-3}


def test_versions_are_those_of_the_distributions():
    records = [
        PluginRecord("p", "dist", "1.2", backends=("a", "b")),
        PluginRecord("q", "", "", backends=("c",)),  # registered from Python
        PluginRecord("r", "gone", "3", state="failed"),
        PluginRecord("s", "cells", "4", cells=("theirs",)),
        PluginRecord("t", "dist", "1.2", cells=("own",)),
        PluginRecord("u", "", "", cells=("here",)),
    ]
    for cell in ("lstm", "own"):
        assert measured.versions(records, cell) == {"a": "dist 1.2", "b": "dist 1.2"}
    theirs = "dist 1.2, cells 4"
    assert measured.versions(records, "theirs") == {"a": theirs, "b": theirs}
    assert measured.versions(records, "here") == {}
    for cell in ("lstm", "gru"):
        found = measured.versions(plugins.registry().plugins, cell)
        assert found.keys() >= {"reference", "aten", "triton"}
        assert "," not in found["reference"]
    candidates = [
        Candidate("a", (), Cost(1.0, "")),
        Candidate("b", ("no",), None),
        Candidate("c", (), Cost(2.0, "")),
        Candidate("d", (), Cost(math.inf, "never by auto")),
    ]
    assert measured.competitors(candidates, records, "lstm") == {"a": "dist 1.2", "c": ""}
    assert measured.competitors(candidates, records, "here") == {"a": "", "c": ""}


def test_all_that_can_run_are_measured_or_none_counts():
    remember(seconds={"a": 3e-3})
    assert seconds() == {}
    assert seconds(able={"a": "dist 1"}) == {"a": 3e-3}
    assert seconds(able={}) == {}
    remember(REQUEST._replace(seq_len=99), {"b": 1e-3})  # near, but another problem
    assert seconds() == {}
    remember(seconds={"b": 1e-3})
    assert seconds() == SECONDS


def test_a_near_problem_counts_where_the_very_one_lacks_a_backend():
    remember(seconds={"a": 3e-3})
    remember(REQUEST._replace(seq_len=50), {"a": 1.0, "b": 2.0})
    assert seconds() == {"a": 2.0, "b": 4.0}


OTHERS = {
    "cell": "rnn_tanh", "input_size": 5, "hidden_size": 5, "proj_size": 2, "num_layers": 2,
    "bidirectional": True, "bias": False, "dtype": torch.float64, "precision": "tf32",
    "needs_grad": True, "varlen": True, "threads": 2, "device": "meta", "arch": "sm_90",
    "dropout": None, "training": None, "compiling": None, "seq_len": None, "batch": None,
    "recompute": 128, "padded": True, "resets": True, "all_states": True,
    "recurrent_dropout": True, "zoneout": True, "error_clip": True, "transformed": True,
    "frozen": True,
}  # fmt: skip


def test_every_field_is_thought_of():
    assert OTHERS.keys() == set(Request._fields)


@pytest.mark.parametrize("field", [name for name, other in OTHERS.items() if other is not None])
def test_a_problem_that_differs_in_more_than_its_sizes_is_another(field):
    remember()
    assert seconds(REQUEST._replace(**{field: OTHERS[field]})) == {}
    assert seconds(REQUEST._replace(dropout=0.5, training=True)) == SECONDS


def test_seconds_grow_with_T_and_not_with_B():
    remember()
    assert seconds(REQUEST._replace(seq_len=50)) == {"a": 1.5e-3, "b": 0.5e-3}
    assert seconds(REQUEST._replace(seq_len=200, batch=16)) == {"a": 6e-3, "b": 2e-3}
    assert seconds(REQUEST._replace(batch=4)) == SECONDS
    for far in ({"seq_len": 49}, {"seq_len": 201}, {"batch": 17}, {"batch": 3}):
        assert seconds(REQUEST._replace(**far)) == {}
    for nothing in ({"seq_len": 0}, {"batch": 0}):
        assert seconds(REQUEST._replace(**nothing)) == {}


def test_a_cost_says_where_it_is_from():
    remember()
    (today,) = {timing.date[:10] for timing in measured.timings(REQUEST).values()}
    why = measured.lookup(REQUEST._replace(seq_len=200), VERSIONS)["b"].why
    assert why == f"measured on this machine: 1,000.0 us at T=100 B=8, {today}"


SIZES = st.tuples(st.integers(1, 300), st.integers(1, 300))


@given(st.sets(SIZES, max_size=6), SIZES)
def test_the_nearest_within_a_factor_of_two_counts(stored, size):
    measured.reset()
    for T, B in stored:
        # its own size is in its seconds, so that the answer tells which it was
        request = REQUEST._replace(seq_len=T, batch=B)
        remember(request, {"a": T * (1000 * T + B)}, VERSIONS, keep=False)
    found = seconds(REQUEST._replace(seq_len=size[0], batch=size[1]), {"a": "dist 1"})

    def octaves(pair):
        return [abs(math.log2(a / b)) for a, b in zip(pair, size, strict=True)]

    near = {pair: math.hypot(*octaves(pair)) for pair in stored if max(octaves(pair)) <= 1}
    if not near:
        assert found == {}
        return
    code = round(found["a"] / size[0])
    assert near[divmod(code, 1000)] == pytest.approx(min(near.values()))


def test_a_graph_takes_the_problem_nearest_to_the_typical_one():
    graph = REQUEST._replace(seq_len=None, batch=None, compiling=True, threads=0)
    mine = REQUEST._replace(threads=torch.get_num_threads())
    typical = roofline.TYPICAL
    remember(mine._replace(seq_len=10, batch=1), {"a": 1.0, "b": 2.0})
    assert seconds(graph) == {"a": typical / 10, "b": 2 * typical / 10}
    remember(mine._replace(seq_len=typical // 2, batch=typical), {"a": 4.0, "b": 3.0})
    remember(mine._replace(seq_len=typical, batch=typical), {"a": 9.0})  # not all
    assert seconds(graph) == {"a": 8.0, "b": 6.0}
    other = torch.get_num_threads() + 1
    assert seconds(graph._replace(threads=other)) == {}


def test_what_cannot_be_remembered():
    with pytest.raises(ValueError, match="request: got one for meta, which this machine does not"):
        remember(REQUEST._replace(device="meta"))
    with pytest.raises(ValueError, match="request: got one without T and B"):
        remember(REQUEST._replace(seq_len=None))
    assert measured.timings(REQUEST._replace(seq_len=None)) == {}
    assert measured.timings(REQUEST._replace(device="meta")) == {}
