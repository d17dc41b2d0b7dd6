"""The file that measurements are kept in: what it holds, damage, and other processes."""

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

import fastrnn
from fastrnn import dispatch, doctor, machine, measured
from fastrnn.request import OPTIONS, Request
from measured_cases import REQUEST, SECONDS, VERSIONS, read_anew, remember, seconds


def environment(*paths):
    """For another process that is to find the same packages and the same cache."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*paths, *sys.path]))}


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
    "cell": damage(lambda problem: problem.update(cell=["gru"])),
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


def test_a_file_from_before_a_request_had_all_its_fields_goes_on_to_count():
    path = remember().path
    content = json.loads(path.read_text())
    for name in ("padded", *OPTIONS, "transformed", "frozen"):
        del content["problems"][0][name]
    path.write_text(json.dumps(content))
    assert read_anew() == SECONDS
    assert read_anew(REQUEST._replace(resets=True)) == {}


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
from fastrnn.request import OPTIONS, Request
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
