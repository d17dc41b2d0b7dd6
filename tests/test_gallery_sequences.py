"""Scripts of the gallery about sequences, run small: what they show is so, and what they refuse."""

from random import Random

import pytest
import torch

import fastrnn
from scripts import EXAMPLES, of_their_own, refused, script

SCRIPTS = ("classification", "rollouts", "shapes", "streaming", "timer")


@pytest.fixture(autouse=True)
def beginning():
    """Each test as if its scripts ran in a process of their own."""
    with of_their_own():
        yield


@pytest.fixture
def run(tmp_path, capsys):
    """Runs a script: (exit status, stdout); the picture must be there."""

    def run(module, *options):
        out = tmp_path / "new" / "picture.png"
        status = module.main([*options, "--out", str(out)])
        assert out.read_bytes().startswith(b"\x89PNG")
        return status, capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", SCRIPTS)
def test_wrong_options_are_told_in_one_line(capsys, name):
    for options, told in (
        (["--steps", "0"], "argument --steps: expected an integer of at least 1, got '0'"),
        (["--hidden", "x"], "argument --hidden: expected an integer of at least 1, got 'x'"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ):
        err = refused(script(name).main, options, capsys)
        assert told in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("name", [*SCRIPTS, "char_lm"])
def test_the_picture_of_the_page_is_small_and_a_png(name):
    picture = (EXAMPLES / "pictures" / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 150_000


def test_timer_asks_for_as_many_steps_as_u2_says():
    timer = script("timer")
    u, target = timer.streams(500, 3, 40, Random(1))
    pairs = timer.durations(u, target, 40)
    assert len(pairs) > 10
    assert torch.equal(pairs[:, 0], pairs[:, 1])
    assert pairs[:, 0].min() < 12
    assert pairs[:, 0].max() > 32
    assert set(target.unique().tolist()) == {0.0, 0.5}


def test_timer_learns_its_durations(run):
    timer = script("timer")
    status, out = run(timer, "--scale", "12", "--steps", "250", "--hidden", "16")
    assert status == 0
    error = float(out.split("new streams: error ")[1].split(";")[0])
    off = float(out.split("they end ")[1].split()[0])
    assert error < 0.03  # 0.06 for who always answers the mean
    assert off < 1


def test_texts_are_statements_comments_and_docstrings(tmp_path):
    module = tmp_path / "module.py"
    module.write_text(
        '"""About."""\n\n# Why, in\n# two lines.\nx = "# no comment"  # but this\n\n\n'
        'def f():\n    """Return."""\n    return x\n'
    )
    found = sorted(script("classification").fragments(module))
    assert found == [
        (0, "return x"),
        (0, "x = '# no comment'"),
        (1, "Why, in two lines. but this"),
        (2, "About."),
        (2, "Return."),
    ]


def test_classification_learns_whatever_the_lengths():
    """The class is the first character, over which the LSTM must read on to the end."""
    classification = script("classification")
    lengths = torch.randint(1, 12, (120,))
    codes = [torch.randint(60, 90, (int(n),)) for n in lengths]
    texts = classification.Texts(codes, torch.arange(120) % 3)
    for code, kind in zip(codes, texts.classes, strict=True):
        code[0] = 100 + kind
    reader = classification.Reader(16)
    classification.train(reader, texts, 150, "cpu")
    scores = classification.answers(reader, texts, "cpu")
    assert (scores.argmax(1) == texts.classes).double().mean() > 0.9
    packed = classification.PackedReader(reader)
    torch.testing.assert_close(classification.answers(packed, texts, "cpu"), scores)


def test_classification_runs_on_real_text(run):
    options = ("--modules", "5", "--steps", "2", "--hidden", "8")
    status, out = run(script("classification"), *options)
    assert status == 0
    assert "torch.nn.LSTM, packed, gives the same answers" in out


STREAM = ("--length", "150", "--window", "25", "--steps", "12", "--hidden", "8")


def test_streaming_gradients_and_steps_agree(run):
    status, out = run(script("streaming"), *STREAM)
    assert status == 0
    lines = [line.split() for line in out.splitlines() if line.startswith("window ")]
    assert [line[1] for line in lines] == ["20:", "60:", "150:"]
    kept, off = ([float(line[at]) for line in lines] for at in (3, 6))
    assert kept == sorted(kept)
    assert off == sorted(off, reverse=True)
    assert off[0] > 1e-3
    assert off[-1] < 1e-5


def test_streaming_tells_a_stepper_that_is_off(run, monkeypatch):
    class Off(fastrnn.Stepper):
        def __call__(self, x):
            return super().__call__(x) + 0.1

    monkeypatch.setattr(fastrnn, "Stepper", Off)
    status, _ = run(script("streaming"), *STREAM)
    assert status == 1


def test_numerals():
    shapes = script("shapes")
    longest = "M" * 3 + "D" + "C" * 3 + "L" + "X" * 3 + "V" + "I" * 3
    known = {4: "IV", 14: "XIV", 944: "CMXLIV", 1999: "MCMXCIX", 3888: longest}
    assert {n: shapes.numeral(n) for n in known} == known
    n = torch.tensor([944, 6])
    added = shapes.ManyToMany(4).wanted(n)[:, :7].tolist()
    assert added == [[2, 1, 2, 1, 2, 1, 0], [1, 1, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("name", ["one to one", "many to one", "one to many", "many to many"])
def test_every_shape_learns(name):
    shapes = script("shapes")
    shape = shapes.SHAPES[name](32)
    n = 1 + torch.randperm(60)
    curve = shapes.train(shape, n, n, 100)
    assert curve[0][1] < 0.2
    assert curve[-1][1] > 0.5


def test_what_is_written_is_what_the_layer_would_say(monkeypatch):
    """Fed with its own letters, the layer in one call finds those letters most likely."""
    shapes = script("shapes")
    shape, n = shapes.OneToMany(8), torch.arange(1, 30)
    with torch.no_grad():
        written = shape.answers(n)
        assert len(written.unique()) > 1
        monkeypatch.setattr(shapes, "LETTERS", torch.zeros(4000, 16, dtype=torch.int64))
        shapes.LETTERS[n] = written
        assert torch.equal(shape.scores(n).argmax(-1), written)


def test_corridors_show_the_sign_once_and_pay_at_the_end():
    rollouts = script("rollouts")
    worlds = rollouts.Corridors(32, torch.Generator().manual_seed(0))
    first, age = torch.ones(32, dtype=torch.bool), torch.zeros(32, dtype=torch.int64)
    sign, ages = torch.zeros(32), set()
    for _ in range(40):
        seen = worlds.observe()
        assert torch.equal(seen[:, 0] != 0, first)
        sign, age = torch.where(first, seen[:, 0], sign), torch.where(first, 1, age + 1)
        action = torch.randint(2, (32,))
        reward, done = worlds.act(action)
        assert torch.equal(done, seen[:, 2] == 1)
        assert torch.equal(reward, done * sign * (2 * action - 1))
        ages.update(age[done].tolist())
        first = done
    assert ages == set(range(4, 13))


def test_advantages_stop_where_an_episode_does():
    rollouts = script("rollouts")
    value, rewards = torch.tensor([[0.5], [0.2], [0.1]]), torch.tensor([[0.0], [1.0], [0.0]])
    done = torch.tensor([[False], [True], [False]])
    gamma, trace = rollouts.DISCOUNT, rollouts.TRACE
    last = gamma * 0.1 - 0.1
    want = [gamma * 0.2 - 0.5 + gamma * trace * 0.8, 0.8, last]
    found = rollouts.advantages(value, rewards, done)
    torch.testing.assert_close(found.flatten(), torch.tensor(want))


def test_only_the_agent_with_a_memory_learns(run, monkeypatch):
    rollouts = script("rollouts")
    monkeypatch.setattr(rollouts, "SHORTEST", 2)
    monkeypatch.setattr(rollouts, "LONGEST", 4)
    options = ("--steps", "60", "--length", "12", "--batch", "64", "--hidden", "16")
    status, out = run(rollouts, *options)
    assert status == 0
    agents = [line for line in out.splitlines() if "in the last tenth" in line]
    remembers, forgets = (float(line.split("at first, ")[1].split()[0]) for line in agents)
    assert remembers > 0.7
    assert abs(forgets) < 0.3
    apart = [float(line.split("at most ")[1].split()[0]) for line in agents]
    assert max(apart) < 1e-4
