"""A run's directory: what is in it, that it appears at once, and that nothing is in it twice."""

import dataclasses
import functools
import json
import math
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import struct

from jrl.lm import rewards
from jrl.run_directory import (
    Recorder,
    RunDirectory,
    UsageError,
    difference,
    git_commit,
    interval,
    plain,
    versions,
)


def rows(points, setting="default", seeds=2, first=1):
    return [
        {
            "step": 100 * p,
            "setting": setting,
            "seed": s,
            "means": {"eval/return": p + s, "no": None},
        }
        for p in range(first, first + points)
        for s in range(seeds)
    ]


def events(directory):
    """Reads (step, tag, value) of every event file below a directory."""
    from tensorboardX.event_file_writer import EventsWriter  # noqa: F401
    from tensorboardX.proto import event_pb2

    found = []
    for file in sorted(directory.rglob("events*")):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return found


def test_create_writes_everything_at_once(tmp_path):
    source = tmp_path / "some.py"
    source.write_text("experiment = 1\n")
    run = RunDirectory.create(tmp_path / "runs" / "a", {"seeds": 2}, source, ["--seeds", "2"])
    assert sorted(p.name for p in run.path.iterdir()) == ["config.json", "experiment.py"]
    config = json.loads(run.config_file.read_text())
    assert config == RunDirectory(run.path).config == run.config
    assert config["values"] == {"seeds": 2} and config["arguments"] == ["--seeds", "2"]
    assert config["experiment"] == "some.py", "no directory of this machine"
    assert config["versions"]["jax"] == versions()["jax"]
    assert str(tmp_path) not in run.config_file.read_text()
    assert [p.name for p in run.path.parent.iterdir()] == ["a"], "nothing temporary is left"


def test_a_path_below_here_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    source = tmp_path / "experiments" / "some.py"
    source.write_text("")
    assert RunDirectory.create("r", {}, source).config["experiment"] == "experiments/some.py"


def test_an_existing_directory_is_refused(tmp_path):
    run = RunDirectory.create(tmp_path / "a", {"seeds": 1})
    run.write_summary({})
    with pytest.raises(UsageError, match="exists: pass --resume, --overwrite or another"):
        RunDirectory.create(tmp_path / "a", {"seeds": 2})
    assert RunDirectory(tmp_path / "a").summary_file.exists()
    run = RunDirectory.create(tmp_path / "a", {"seeds": 2}, overwrite=True)
    assert run.config["values"] == {"seeds": 2} and not run.started
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_overwrite_deletes_only_runs_that_nobody_runs(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="is no run"):
        RunDirectory.create(tmp_path / "precious", {}, overwrite=True)
    assert (tmp_path / "precious" / "thesis.tex").exists()
    with RunDirectory.create(tmp_path / "a", {}).lock():
        code = (
            "import sys; from jrl.run_directory import RunDirectory as R\n"
            "print(R(sys.argv[1]).state()); R.create(sys.argv[1], {}, overwrite=True)"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "a"], capture_output=True, text=True
        )
    assert other.stdout == "running, step 0\n" and "is in use" in other.stderr


def test_rows_truncate_and_survive_a_kill(tmp_path):
    run = RunDirectory.create(tmp_path / "a", {})
    assert run.rows() == [] and run.state() == "not started"
    recorder = Recorder(run)
    recorder.write(rows(3))
    recorder.close()
    assert run.rows() == rows(3)
    with open(run.metrics_file, "a") as file:
        file.write('{"step": 400, "sett')
    assert run.rows() == rows(3) and run.state() == "stopped at step 300"
    run.truncate(200)
    assert run.rows() == rows(2)
    run.write_summary({"x": 1})
    assert run.summary() == {"x": 1} and run.state() == "finished"


def test_every_line_is_strict_json(tmp_path):
    run = RunDirectory.create(tmp_path / "a", {})
    with pytest.raises(ValueError, match="JSON"):
        Recorder(run).write([{"step": 1, "setting": "", "seed": 0, "means": {"x": math.nan}}])


def test_event_files_hold_means_over_seeds_once(tmp_path):
    run = RunDirectory.create(tmp_path / "a", {})
    recorder = Recorder(run)
    recorder.write(rows(2, "clip_eps=0.1") + rows(2, "clip_eps=0.2"))
    recorder.close()
    run.truncate(100)
    recorder = Recorder(run)
    recorder.write(rows(2, "clip_eps=0.1", first=2) + rows(2, "clip_eps=0.2", first=2))
    recorder.close()
    for setting in ("clip_eps=0.1", "clip_eps=0.2"):
        found = events(run.path / "tensorboard" / setting)
        assert found == [(100 * p, "eval/return", p + 0.5) for p in (1, 2, 3)]


def test_weights_and_biases(tmp_path, monkeypatch):
    run = RunDirectory.create(tmp_path / "a", {"seeds": 3})
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="wandb: the package is missing, run `pip install wandb`"):
        Recorder(run, wandb="project")
    calls = []
    fake = types.ModuleType("wandb")

    def init(**kwargs):
        calls.append(kwargs)
        return types.SimpleNamespace(
            id="abc",
            finish=lambda: calls.append("end"),
            log=lambda x, step: calls.append((x, step)),
        )

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    recorder = Recorder(run, tensorboard=False, wandb="project")
    recorder.write(rows(1))
    recorder.close()
    assert calls[0]["project"] == "project" and calls[0]["config"] == {"seeds": 3}
    assert calls[1:] == [({"default/eval/return": 1.5}, 100), "end"]
    assert not (run.path / "tensorboard").exists()
    Recorder(run, wandb="project")
    assert calls[3]["id"] == "abc", "a continuation goes on with the same online run"


@pytest.mark.parametrize("n", [2, 3, 4, 5, 10, 31, 100])
def test_interval_is_scipys(n):
    x = np.random.default_rng(n).normal(3, 2, n)
    low, high = scipy.stats.t.interval(0.95, n - 1, x.mean(), scipy.stats.sem(x))
    found = interval(x)
    np.testing.assert_allclose([found["low"], found["high"]], [low, high], rtol=1e-12)
    assert found["n"] == n


def test_interval_of_one_or_none():
    assert interval([2.0]) == {"mean": 2.0, "low": None, "high": None, "n": 1}
    assert interval([math.nan]) == {"mean": None, "low": None, "high": None, "n": 0}


class Hyper(struct.PyTreeNode):
    rate: float = math.inf


@dataclasses.dataclass(frozen=True)
class Config:
    sizes: tuple = (1, 2)
    make: object = events
    hyper: Hyper = Hyper()


def test_plain_functions_have_no_address():
    """Which differs from one start of the program to the next, and would refuse a resume."""
    bound = functools.partial(rewards.target_length, scale=0.5)
    found = plain({"bound": bound, "sum": rewards.weighted({rewards.exact_match: 1.0, bound: 2.0})})
    assert "0x" not in json.dumps(found)
    assert found["bound"] == {
        "function": "jrl.lm.rewards.functions.target_length", "args": [], "scale": 0.5
    }  # fmt: skip
    assert found["sum"]["weights"]["jrl.lm.rewards.functions.exact_match"] == 1.0


def test_plain_is_json():
    found = plain({"config": Config(), 3: np.float32(0.5), "array": jnp.arange(2), "x": object()})
    assert found == {
        "config": {"sizes": [1, 2], "make": f"{__name__}.events", "hyper": {"rate": "inf"}},
        "3": 0.5,
        "array": [0, 1],
        "x": "object",
    }
    json.dumps(found, allow_nan=False)


def test_git_commit(tmp_path):
    assert git_commit(tmp_path) is None
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    (tmp_path / "a").write_text("1")
    for command in (["init", "-q"], ["add", "a"], ["commit", "-qm", "x"], ["tag", "v1"]):
        subprocess.run(git + command, cwd=tmp_path, check=True)
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=tmp_path, text=True).strip()
    assert git_commit(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert git_commit(tmp_path) == f"{head}-modified"


@pytest.mark.parametrize(
    ("saved", "now", "found"),
    [
        ({"a": 1, "b": {"c": [1, 2]}}, {"a": 1.0, "b": {"c": [1, 2]}}, None),
        ({"b": {"c": 1, "d": 2}}, {"b": {"c": 1, "d": 3}}, ("b.d", 2, 3)),
        ({"b": {"c": 1}}, {"b": {"d": 1}}, ("b.c", 1, None)),
        ({"b": {}}, {"b": {"d": 1}}, ("b.d", None, 1)),
        ({"b": {"c": 1}}, {"b": None}, ("b", {"c": 1}, None)),
        ({"b": [1, 2]}, {"b": [1]}, ("b", [1, 2], [1])),
    ],
)
def test_the_field_that_differs_is_named(saved, now, found):
    assert difference(saved, now) == found
