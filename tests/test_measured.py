"""What is kept of measurements, what is believed of it, and where it is looked for."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastrnn
from fastrnn import dispatch, doctor, machine, measured, plugins, roofline
from fastrnn.discovery import PluginRecord
from fastrnn.request import Candidate, Cost, Request

REQUEST = Request(
    cell="lstm", seq_len=100, batch=8, input_size=3, hidden_size=4, proj_size=0, num_layers=1,
    bidirectional=False, bias=True, dropout=0.0, dtype=torch.float32, device="cpu", arch="",
    precision="ieee", needs_grad=False, training=False, varlen=False, compiling=False, threads=1,
)  # fmt: skip
VERSIONS = {"a": "dist 1", "b": "dist 1"}
SECONDS = {"a": 3e-3, "b": 1e-3}


def environment(*paths):
    """For another process that is to find the same packages and the same cache."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*paths, *sys.path]))}


def remember(request=REQUEST, seconds=SECONDS, versions=VERSIONS, keep=True):
    return measured.remember(request, seconds, versions, keep=keep)


def seconds(request=REQUEST, able=VERSIONS):
    return {name: cost.seconds for name, cost in measured.lookup(request, able).items()}


def read_anew(request=REQUEST, able=VERSIONS):
    """What another process would find."""
    measured.reset()
    return seconds(request, able)


# The file


def test_what_is_kept_is_found_by_another_process():
    path = remember().path
    remember(REQUEST._replace(seq_len=500, cell="rnn_relu", dtype=torch.bfloat16))
    assert read_anew() == SECONDS
    assert read_anew(REQUEST._replace(seq_len=500)) == {}
    assert path.parent == Path(os.environ["FASTRNN_CACHE_DIR"])
    assert [each.name for each in path.parent.iterdir()] == [path.name]  # nothing temporary


def test_what_is_not_kept_is_found_by_this_process_alone():
    path = remember(keep=False).path
    assert seconds() == SECONDS
    assert not path.parent.exists()
    assert read_anew() == {}


def test_the_file_says_in_full_what_it_holds():
    content = json.loads(remember().path.read_text())
    assert content["schema"] == measured.SCHEMA
    assert content["machine"] == {
        "device": "cpu", "name": machine.cpu_model(), "torch": torch.__version__,
        "triton": machine.triton_version() or "", "fastrnn": fastrnn.__version__,
    }  # fmt: skip
    (problem,) = content["problems"]
    backends = problem.pop("backends")
    immaterial = {"dropout", "training", "compiling"}
    assert problem.keys() == set(Request._fields) - immaterial
    assert (problem["dtype"], problem["seq_len"], problem["batch"]) == ("float32", 100, 8)
    assert {name: timing["seconds"] for name, timing in backends.items()} == SECONDS
    assert {timing["version"] for timing in backends.values()} == {"dist 1"}


def test_every_machine_and_version_has_a_file_of_its_own():
    here = measured.machine("cpu", "")
    others = [here._replace(**{name: "x"}) for name in here._fields]
    others += [here._replace(name="A/B"), here._replace(name="A-B"), here._replace(triton="")]
    names = [other.file_name for other in (here, *others)]
    assert len(set(names)) == len(names)
    assert all(name == Path(name).name and len(name) < 200 for name in names)
    assert len(here._replace(name="A" * 500).file_name) < 200  # many GPUs; 255 is the limit


@pytest.mark.parametrize("field", ["schema", *machine.Machine._fields])
def test_a_file_of_another_machine_is_ignored(field, caplog):
    path = remember().path
    content = json.loads(path.read_text())
    (content if field == "schema" else content["machine"])[field] = "other"
    path.write_text(json.dumps(content))
    with caplog.at_level(logging.DEBUG, "fastrnn"):
        assert read_anew() == {}
        assert seconds() == {}
    (message,) = caplog.messages
    assert "is ignored: it is of another machine, version or schema" in message
    remember(REQUEST._replace(hidden_size=9))  # replaces it
    assert read_anew() == {}
    assert read_anew(REQUEST._replace(hidden_size=9)) == SECONDS


def damage(change):
    def damaged(text):
        content = json.loads(text)
        change(content["problems"][0])
        return json.dumps(content).encode()

    return damaged


DAMAGES = {
    "empty": lambda text: b"",
    "cut": lambda text: text[:100].encode(),
    "binary": lambda text: b"\xff\x00" + text.encode(),
    "list": lambda text: b"[]",
    "null": lambda text: b"null",
    "deep": lambda text: b"[" * 100_000,
    "no backends": damage(lambda problem: problem.pop("backends")),
    "no cell": damage(lambda problem: problem.pop("cell")),
    "cell": damage(lambda problem: problem.update(cell="gru")),
    "dtype": damage(lambda problem: problem.update(dtype="float33")),
    "not a dtype": damage(lambda problem: problem.update(dtype="nn")),
    "unhashable": damage(lambda problem: problem.update(threads=[1])),
    "no size": damage(lambda problem: problem.update(batch=None)),
    "size 0": damage(lambda problem: problem.update(seq_len=0)),
    "nan": damage(lambda problem: problem["backends"]["a"].update(seconds=math.nan)),
    "infinite": damage(lambda problem: problem["backends"]["a"].update(seconds=math.inf)),
    "negative": damage(lambda problem: problem["backends"]["a"].update(seconds=-1)),
    "text": damage(lambda problem: problem["backends"]["a"].update(seconds="1")),
    "date": damage(lambda problem: problem["backends"]["a"].update(date="today")),
    "no zone": damage(lambda problem: problem["backends"]["a"].update(date="2026-01-01")),
    "no version": damage(lambda problem: problem["backends"]["a"].update(version="")),
    "more": damage(lambda problem: problem["backends"]["a"].update(more=1)),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_ignored_reported_and_replaced(name):
    path = remember().path
    path.write_bytes(DAMAGES[name](path.read_text()))
    assert read_anew() == {}
    dispatch.clear_cache()
    assert dispatch.decide(REQUEST).backend  # by estimates
    finding = next(f for f in doctor.examine() if f.topic == "measurements on cpu")
    assert not finding.works
    assert str(path) in finding.value
    assert "`fastrnn tune --forget`" in finding.advice
    remember()
    assert measured.store("cpu", "").complaint == ""
    assert read_anew() == SECONDS


def test_a_place_that_cannot_be_read_or_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "file"))
    assert seconds() == {}
    with pytest.raises(OSError, match="file"):
        remember()
    folder = tmp_path / "folder"
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(folder))
    (folder / measured.machine("cpu", "").file_name).mkdir(parents=True)
    assert read_anew() == {}
    assert "IsADirectoryError" in measured.store("cpu", "").complaint


def test_a_write_that_fails_leaves_the_old_file_and_no_other(monkeypatch):
    path = remember().path

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            remember(seconds={"a": 9.0, "b": 9.0})
    assert read_anew() == SECONDS
    assert list(path.parent.iterdir()) == [path]


def test_the_file_is_read_once_and_only_when_asked(monkeypatch):
    remember()
    measured.reset()
    read = []
    original = measured._read
    monkeypatch.setattr(measured, "_read", lambda *a: read.append(a) or original(*a))
    assert measured.lookup(REQUEST, {}) == {}
    assert read == []
    for steps in (100, 101, 102):
        dispatch.decide(REQUEST._replace(seq_len=steps))
    dispatch.decide(REQUEST._replace(seq_len=103), here=False)
    assert len(read) == 1
    dispatch.clear_cache()
    assert len(read) == 1
    dispatch.decide(REQUEST)
    assert len(read) == 2


AUDIT = """
import os, sys
opened, cache = [], os.environ["FASTRNN_CACHE_DIR"]
import torch  # what it opens is its own business

def audit(event, arguments):
    if event in ("open", "os.mkdir", "os.rename") and not isinstance(arguments[0], int):
        writes = event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        opened.append((str(arguments[0]), bool(writes)))

sys.addaudithook(audit)
sys.dont_write_bytecode = True
import fastrnn, fastrnn.cli
assert not [path for path, _ in opened if path.startswith(cache)], "read at import"
lstm = fastrnn.LSTM(3, 4)
with torch.no_grad():
    lstm(torch.zeros(2, 3, 3))
assert [path for path, _ in opened if path.startswith(cache)], "not read at the first call"
assert not [path for path, writes in opened if writes and path.startswith(cache)]
del opened[:]
fastrnn.cli.main("tune --T 2 --B 1 --H 3 --cell lstm --repeats 1".split())
written = [path for path, writes in opened if writes]
assert written and all(path.startswith(cache) for path in written), written
"""


def test_nothing_is_read_at_import_nor_written_elsewhere():
    remember()
    done = subprocess.run(
        [sys.executable, "-c", AUDIT], env=environment(), text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


WRITER = """
import os, sys, time
import torch
from fastrnn import measured
from fastrnn.request import Request
from test_data import REQUEST
go, first = sys.argv[1], int(sys.argv[2])
measured.store("cpu", "")
print("ready", flush=True)
while not os.path.exists(go):
    time.sleep(1e-3)
for hidden in range(first, first + 100):
    request = REQUEST._replace(hidden_size=hidden)
    measured.remember(request, {"a": 1e-3}, {"a": "dist 1"}, keep=True)
"""


def test_of_two_processes_that_write_at_once_neither_loses_anything(tmp_path):
    (tmp_path / "test_data.py").write_text(
        f"import torch\nfrom fastrnn.request import Request\nREQUEST = {REQUEST!r}\n"
    )
    env, go = environment(tmp_path), tmp_path / "go"
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(go), str(first)], env=env,
                         stdout=subprocess.PIPE, text=True)
        for first in (1000, 2000)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    go.touch()
    for process in processes:
        process.communicate(timeout=100)
        assert process.returncode == 0
    able = {"a": "dist 1"}
    found = [
        hidden
        for first in (1000, 2000)
        for hidden in range(first, first + 100)
        if seconds(REQUEST._replace(hidden_size=hidden), able)
    ]
    assert len(found) == 200


def test_what_others_wrote_meanwhile_is_kept_and_taken_over():
    measured.store("cpu", "")  # read, and found empty
    mine = dict(measured._stores)
    measured.reset()
    remember()  # another process
    remember(REQUEST._replace(hidden_size=9), {"a": 1.0}, VERSIONS)
    measured._stores.update(mine)
    assert seconds() == {}
    remember(REQUEST._replace(hidden_size=9), {"b": 2.0}, VERSIONS)
    for found in (seconds, read_anew):
        assert found() == SECONDS
        assert found(REQUEST._replace(hidden_size=9)) == {"a": 1.0, "b": 2.0}


def test_what_others_measured_anew_is_not_undone():
    remember()
    mine = dict(measured._stores)
    measured.reset()
    remember(seconds={"a": 5.0, "b": 6.0})  # another process
    measured._stores.update(mine)
    remember(REQUEST._replace(hidden_size=9))
    assert read_anew() == {"a": 5.0, "b": 6.0}


def test_forgetting():
    path = remember().path
    assert measured.forget("cpu", "") == path
    assert not path.exists()
    assert seconds() == {}
    assert measured.forget("cpu", "") is None


# What is believed


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
    ]
    assert measured.versions(records) == {"a": "dist 1.2", "b": "dist 1.2"}
    assert measured.versions(plugins.registry().plugins).keys() >= {"reference", "aten", "triton"}
    candidates = [
        Candidate("a", (), Cost(1.0, "")),
        Candidate("b", ("no",), None),
        Candidate("c", (), Cost(2.0, "")),
        Candidate("d", (), Cost(math.inf, "never by auto")),
    ]
    assert measured.competitors(candidates, records) == {"a": "dist 1.2", "c": ""}


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
    "recompute": 128,
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


# Where


def test_the_cache_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("FASTRNN_CACHE_DIR", "/named")
    assert machine.cache_directory() == Path("/named")
    monkeypatch.setenv("FASTRNN_CACHE_DIR", "~/there")
    assert machine.cache_directory() == Path("/home/somebody/there")
    monkeypatch.setenv("FASTRNN_CACHE_DIR", "")
    assert machine.cache_directory() == Path("/xdg/fastrnn")
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert machine.cache_directory() == Path("/home/somebody/.cache/fastrnn")


def test_without_a_home_there_are_estimates(monkeypatch):
    monkeypatch.delenv("FASTRNN_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does if there is none
    assert machine.cache_directory() is None
    assert seconds() == {}
    with pytest.raises(OSError, match="no home directory to keep measurements in; set FASTRNN_CA"):
        remember()
    assert measured.forget("cpu", "") is None


def test_the_tests_have_directories_of_their_own(tmp_path):
    assert tmp_path.parent == Path(os.environ["FASTRNN_CACHE_DIR"]).parent.parent


@pytest.fixture
def gpus(monkeypatch):
    """Make torch see GPUs: pairs of name and architecture."""

    def gpus(*found):
        properties = [type("P", (), {"name": name}) for name, _ in found]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(found))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
        monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)
        monkeypatch.setattr(machine, "arch_of", lambda device: found[device.index][1])

    return gpus


def test_a_gpu_is_known_by_name_and_architecture(gpus):
    gpus(("H100", "sm_90"), ("A100", "sm_80"), ("H100", "sm_90"))
    assert machine.present_devices() == [("cpu", ""), ("cuda", "sm_90"), ("cuda", "sm_80")]
    assert machine.machine("cuda", "sm_90").name == "H100"
    assert machine.machine("cuda", "sm_80").name == "A100"
    assert machine.machine("cuda", "sm_100") is None
    assert machine.machine("mps", "") is None
    here = REQUEST._replace(device="cuda", arch="sm_90", threads=0)
    remember(here)
    assert read_anew(here) == SECONDS
    assert read_anew(here._replace(arch="sm_80")) == {}
    measured.reset()
    gpus(("H200", "sm_90"))
    assert seconds(here) == {}


def test_gpus_of_one_architecture_that_are_seen_together_are_one_machine(gpus):
    gpus(("H200", "sm_90"), ("H100", "sm_90"))
    assert machine.machine("cuda", "sm_90").name == "H100 + H200"
    gpus(("", "gfx942"))
    assert machine.machine("cuda", "gfx942").name == "gfx942"


def test_a_cpu_always_has_a_name(monkeypatch):
    assert machine.machine("cpu", "").name
    monkeypatch.setattr(machine, "cpu_model", lambda: "")
    assert machine.machine("cpu", "").name == "unknown CPU"
