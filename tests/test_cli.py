"""The command line: every mistake is one line, exit code 2, and leaves nothing behind."""

import json
import pathlib
import subprocess
import sys
import time

import pytest

from jrl import cli
from jrl.run_directory import RunDirectory, UsageError

TINY = '''
"""Linear regression, tiny.

Nothing more to say.
"""
import dataclasses
import time

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jrl import train
from jrl.experiment import Experiment
from jrl.types import Algorithm, Leaf


class Hyper(struct.PyTreeNode):
    learning_rate: Leaf = 0.1
    noise: Leaf = 0.5


@dataclasses.dataclass(frozen=True)
class Config:
    batch: int = 8
    """Examples of one iteration."""
    sleep: float = 0.0

    def validate(self):
        if self.batch < 1:
            raise ValueError(f"config.batch must be at least 1, got {self.batch}")


def make(config):
    def objective(params, extra, x, key, hp):
        y = 3 * x + hp.noise * jax.random.normal(key, x.shape)
        return train.Loss(jnp.sum((params["w"] * x - y) ** 2), jnp.float32(x.size))

    optimizer = lambda hp: optax.adam(hp.learning_rate)
    step = train.make_train_step(train.gradient(objective), optimizer)

    def init(key, hp):
        return train.init(key, {"w": jax.random.normal(key)}, optimizer, hp)

    def iterate(state, hp):
        if config.sleep:
            jax.debug.callback(lambda: time.sleep(config.sleep))
        x = jax.random.normal(jax.random.fold_in(state.key, state.step + 7), (config.batch,))
        state, loss = step(state, x, hp)
        return state, loss.metrics

    def evaluate(state, key, hp):
        return {"return": (-((state.params["w"] - 3) ** 2), jnp.float32(1))}

    return Algorithm(init, iterate, evaluate, config.batch)


experiment = Experiment(
    name="tiny", make=make, config=Config(), hyper=Hyper(), steps=320, seeds=2, points=10,
    checkpoint_every=2,
)
'''

PROTOCOL = '''
"""Counts to a number: no Experiment, only the two methods."""
import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class Count:
    """Counts."""

    to: int = 3
    """Where to stop."""

    def validate(self):
        if self.to < 1:
            raise ValueError(f"to must be at least 1, got {self.to}")

    def run(self, directory, resume=False):
        (directory / "counted.txt").write_text(str(list(range(self.to))))
        return {"total": self.to, "resumed": resume}


experiment = Count()
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with two experiments, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "tiny.py").write_text(TINY.lstrip())
    (tmp_path / "experiments" / "count.py").write_text(PROTOCOL.lstrip())
    return tmp_path


def jrl(*arguments):
    """Runs a command in this process and returns its exit code."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    return stop.value.code


def files(directory):
    return sorted(p for p in directory.rglob("*") if "__pycache__" not in p.parts)


FILE = "experiments/tiny.py"

MISTAKES = {
    "no such command": (["trian"], "'trian': choose from run, resume, plot, video, generate, list"),
    "no file named": (["run", "--seeds", "3"], "name the experiment's file first"),
    "missing file": (["run", "nope.py"], "nope.py: no such file"),
    "a directory": (["run", "experiments"], "experiments: no such file"),
    "not python": (["run", "notes.txt"], "not a Python file"),
    "no experiment": (["run", "empty.py"], "empty.py defines no `experiment`"),
    "no protocol": (["run", "wrong.py"], "an instance of a dataclass with validate() and run()"),
    "file that raises": (["run", "raises.py"], "raises.py, line 2: ModuleNotFoundError: No module"),
    "syntax error": (["run", "syntax.py"], "syntax.py, line 1: SyntaxError"),
    "unknown option": (["run", FILE, "--sedes", "3"], "--sedes"),
    "unknown hyper": (["run", FILE, "--hyper.gamma", "3"], "--hyper.gamma"),
    "wrong type": (["run", FILE, "--seeds", "many"], "--seeds: invalid literal for int()"),
    "missing value": (["run", FILE, "--hyper.noise"], "Missing value for argument '--hyper.noise'"),
    "stray word": (["run", FILE, "fast"], "Unrecognized options: fast"),
    "zero seeds": (["run", FILE, "--seeds", "0"], "seeds must be at least 1, got 0"),
    "zero steps": (["run", FILE, "--steps", "0"], "steps must be at least 1, got 0"),
    "zero points": (["run", FILE, "--points", "0"], "points must be at least 1, got 0"),
    "negative checkpoint_every": (
        ["run", FILE, "--checkpoint-every", "-1"],
        "checkpoint_every must be at least 1, got -1",
    ),
    "negative seed": (["run", FILE, "--seed", "-1"], "seed must be between 0 and"),
    "too few steps": (
        ["run", FILE, "--steps", "16"],
        "steps=16 is 2 iterations of 8 steps, fewer than points=10: raise steps to 80 or",
    ),
    "no steps": (["run", FILE, "--steps", "None"], "steps must be given"),
    "config's own": (["run", FILE, "--config.batch", "0"], "config.batch must be at least 1"),
    "not a number": (["run", FILE, "--hyper.noise", "nan"], "hyper.noise is not a number"),
    "unknown sweep": (
        ["run", FILE, "--sweep", "gamma=0.9"],
        "sweep: no hyper-parameter 'gamma', choose from learning_rate, noise",
    ),
    "malformed sweep": (["run", FILE, "--sweep", "noise=1,x"], "noise=1,x: write field=value,"),
    "empty sweep": (["run", FILE, "--sweep", "noise="], "noise=: write field=value,"),
    "repeated value": (["run", FILE, "--sweep", "noise=1,1"], "one or more different numbers"),
    "too many devices": (["run", FILE, "--devices", "999"], "devices=999, but there are only 8"),
    "more devices than members": (
        ["run", FILE, "--devices", "3"],
        "devices=3 is more than the population of 2",
    ),
    "cpu devices": (["run", FILE, "--cpu-devices", "x"], "--cpu-devices must be a whole number"),
    "wandb": (["run", FILE, "--wandb", "p"], "wandb: the package is missing, run `pip install"),
    "both": (["run", FILE, "--resume", "--overwrite"], "exclude each other"),
    "existing": (["run", FILE, "--directory", "taken"], "taken exists: pass --resume, --overwrite"),
    "below a file": (["run", FILE, "--directory", "notes.txt/x"], "notes.txt"),
    "not a run": (
        ["run", FILE, "--directory", "experiments", "--overwrite"],
        "experiments is no run",
    ),
    "protocol's own": (["run", "experiments/count.py", "--to", "0"], "to must be at least 1"),
    "resume nothing": (["resume"], "name the run's directory"),
    "resume no run": (["resume", "experiments"], "experiments is no run"),
    "resume without the keys": (["resume", "foreign"], "its config.json has no proper 'values'"),
    "resume a list": (["resume", "list"], "list is no run: its config.json has no proper 'values'"),
    "resume from python": (["resume", "taken"], "taken was started from Python"),
    "plot nothing": (["plot"], "name one or more"),
    "plot no run": (["plot", "experiments"], "experiments is no run"),
    "plot an empty run": (["plot", "taken"], "no measurements"),
    "list": (["list", "--nope"], "Unrecognized options: --nope"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(here, capsys, monkeypatch, name):
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, find=cli.importlib.util.find_spec: None if name == "wandb" else find(name),
    )
    (here / "notes.txt").write_text("")
    (here / "empty.py").write_text("x = 1\n")
    (here / "wrong.py").write_text("experiment = 3\n")
    (here / "raises.py").write_text("x = 1\nimport nonsense\n")
    (here / "syntax.py").write_text("x = = 1\n")
    RunDirectory.create(here / "taken", {})
    for other, text in (("foreign", '{"x": 1}'), ("list", "[]")):
        (here / other).mkdir()
        (here / other / "config.json").write_text(text)
    before = files(here)
    arguments, message = MISTAKES[name]
    assert jrl(*arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("jrl: error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert message in err
    assert out == "" and "Traceback" not in err
    assert files(here) == before


def test_run_writes_a_whole_directory(here, capsys):
    assert (
        jrl("run", FILE, "--seeds", "3", "--sweep", "noise=0,0.5", "--hyper.learning-rate=0.2") == 0
    )
    run = here / "runs" / "tiny"
    assert {p.name for p in run.iterdir()} == {
        "config.json",
        "experiment.py",
        "metrics.jsonl",
        "summary.json",
        "tensorboard",
        "checkpoints",
        "lock",
        "eval_return.png",
    }
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 10 * 2 * 3
    assert {row["setting"] for row in rows} == {"noise=0", "noise=0.5"}
    assert [row["step"] for row in rows[::6]] == [32 * k for k in range(1, 11)]
    assert [row["seed"] for row in rows[:6]] == [0, 1, 2, 0, 1, 2]
    assert all({"loss", "eval/return"} <= row["means"].keys() for row in rows)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 320 and summary["population"] == 6 and summary["note"] is None
    exact, noisy = summary["settings"]
    assert exact["hyper"] == {"learning_rate": 0.2, "noise": 0.0}
    assert exact["return"]["n"] == 3 and exact["return"]["mean"] > -0.1
    assert noisy["return"]["low"] < noisy["return"]["mean"] < noisy["return"]["high"]
    assert summary["versions"]["jax"] and summary["seconds"] > summary["compile_seconds"] > 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "step 64/320" in out and "noise=0.5" in out and "runs/tiny/eval_return.png" in out
    config = json.loads((run / "config.json").read_text())
    assert config["experiment"] == FILE and config["values"]["seeds"] == 3
    assert str(here) not in (run / "config.json").read_text() + (run / "summary.json").read_text()


def test_existing_refused_resume_kept_overwrite_replaced(here, capsys):
    assert jrl("run", FILE, "--no-tensorboard") == 0
    before = (here / "runs/tiny/metrics.jsonl").read_text()
    assert jrl("run", FILE) == 2
    assert jrl("run", FILE, "--resume", "--seeds", "3") == 2
    assert "seeds is 2 in runs/tiny and now 3: go on with the same" in capsys.readouterr().err
    assert jrl("run", FILE, "--resume", "--hyper.noise", "0.25") == 2
    assert "hyper.noise is 0.5 in runs/tiny and now 0.25: go on" in capsys.readouterr().err
    assert jrl("run", FILE, "--resume", "--sweep", "noise=1") == 2
    assert "sweep.noise is None in runs/tiny and now [1.0]: go on" in capsys.readouterr().err
    assert jrl("run", FILE, "--resume") == 0
    assert jrl("resume", "runs/tiny") == 0
    assert (here / "runs/tiny/metrics.jsonl").read_text() == before
    assert jrl("run", FILE, "--overwrite", "--seeds", "1") == 0
    assert len((here / "runs/tiny/metrics.jsonl").read_text().splitlines()) == 10
    assert [p.name for p in (here / "runs").iterdir()] == ["tiny"]


def test_resume_starts_what_is_not_there_yet(here):
    assert jrl("run", FILE, "--resume", "--directory", "x/y") == 0
    assert (here / "x/y/summary.json").exists()


def test_steps_are_rounded_up_and_it_says_so(here, capsys):
    assert jrl("run", FILE, "--steps", "321", "--points", "4", "--seeds", "1") == 0
    summary = json.loads((here / "runs/tiny/summary.json").read_text())
    assert summary["steps"] == 352 and summary["steps_requested"] == 321
    note = "steps: 352 instead of 321, rounded up to 4 points of 11 whole iterations"
    assert summary["note"] == note and note in capsys.readouterr().out


def test_points_that_checkpoints_do_not_divide(here):
    assert jrl("run", FILE, "--points", "5", "--checkpoint-every", "3") == 0
    assert sorted(p.name for p in (here / "runs/tiny/checkpoints").iterdir()) == ["3", "5"]


def test_the_protocol_alone_is_enough(here, capsys):
    assert jrl("run", "experiments/count.py", "--to", "4") == 0
    assert (here / "runs/count/counted.txt").read_text() == "[0, 1, 2, 3]"
    summary = json.loads((here / "runs/count/summary.json").read_text())
    assert summary == {"total": 4, "resumed": False}
    assert "total: 4" in capsys.readouterr().out
    assert jrl("resume", "runs/count") == 0
    assert "resumed: True" in capsys.readouterr().out


def test_list_shows_experiments_and_runs(here, capsys):
    assert jrl("list") == 0
    out = capsys.readouterr().out
    assert "experiments/tiny.py   Linear regression, tiny." in out
    RunDirectory.create("runs/a", {})
    RunDirectory.create("runs/b", {}).write_summary({})
    assert jrl("list") == 0
    out = capsys.readouterr().out
    assert "runs/a                not started" in out and "runs/b                finished" in out


def test_help(here, capsys):
    for arguments in ([], ["--help"], ["run"], ["run", "--help"], ["resume", "--help"]):
        assert jrl(*arguments) == 0
        assert "jrl" in capsys.readouterr().out
    assert jrl("run", FILE, "--help") == 0
    out, err = capsys.readouterr()
    for text in ("--seeds", "--hyper.learning-rate", "--config.batch", "--sweep", "--cpu-devices"):
        assert text in out
    assert "Linear regression, tiny." in out and err == ""
    assert jrl("plot", "--help") == 0 and "--metric" in capsys.readouterr().out
    assert jrl("--version") == 0 and capsys.readouterr().out.startswith("jrl 0.")
    assert not (here / "runs").exists()


def test_help_is_fast_and_loads_nothing_heavy():
    code = (
        "import sys, jrl.cli\n"
        "try: jrl.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "bad = {'jax', 'flax', 'orbax', 'matplotlib', 'tensorboardX', 'numpy'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    assert time.perf_counter() - began < 1.5


@pytest.mark.parametrize("module", ["jrl", "jrl.cli"])
def test_the_module_is_the_command(module):
    out = subprocess.check_output([sys.executable, "-m", module, "--version"], text=True)
    assert out.startswith("jrl ")


def test_the_installed_command():
    command = pathlib.Path(sys.executable).with_name("jrl")
    assert subprocess.check_output([command, "--version"], text=True).startswith("jrl ")


def test_devices_only_share_the_work_out(here, capsys):
    for devices in ("1", "2", "4"):
        arguments = ("--seeds", "4", "--devices", devices, "--directory", f"on{devices}")
        assert jrl("run", FILE, *arguments) == 0
        assert f"members 4, steps 320, devices {devices}\n" in capsys.readouterr().out
    on = {n: RunDirectory(f"on{n}").rows() for n in (1, 2, 4)}
    for rows in (on[2], on[4]):
        for a, b in zip(on[1], rows, strict=True):
            assert (a["step"], a["seed"]) == (b["step"], b["seed"])
            assert a["means"] == pytest.approx(b["means"], rel=1e-4, abs=1e-5)


def test_a_member_does_not_depend_on_the_others(here):
    assert jrl("run", FILE, "--seeds", "3", "--directory", "three") == 0
    assert jrl("run", FILE, "--seeds", "1", "--seed", "2", "--directory", "one") == 0
    third = [row for row in RunDirectory("three").rows() if row["seed"] == 2]
    for a, b in zip(third, RunDirectory("one").rows(), strict=True):
        assert a["means"] == pytest.approx(b["means"], rel=1e-4, abs=1e-5)


def test_whole_numbers_are_numbers(here, capsys):
    file = here / "experiments" / "whole.py"
    file.write_text(TINY.lstrip().replace("hyper=Hyper()", "hyper=Hyper(noise=1)"))
    assert isinstance(cli.load_experiment(file).hyper.noise, float)
    assert jrl("run", str(file), "--help") == 0
    assert "--hyper.noise INT" not in capsys.readouterr().out
    arguments = ("--directory", "a", "--hyper.learning-rate", "1", "--hyper.noise", "0.5")
    assert jrl("run", str(file), *arguments) == 0
    assert RunDirectory("a").config["values"]["hyper"] == {"learning_rate": 1.0, "noise": 0.5}


def test_an_experiment_runs_from_python(here, capsys):
    experiment = cli.load_experiment(pathlib.Path(FILE))
    summary = experiment.run("a", quiet=True)
    assert summary["finished"] and capsys.readouterr() == ("", "")
    assert experiment.run("a", resume=True) == summary
    with pytest.raises(UsageError, match="a exists: resume it or choose another directory"):
        experiment.run("a")


def test_a_package_that_an_experiment_lacks_is_one_line(here, capsys):
    file = here / "experiments" / "lacking.py"
    lacking = "raise ImportError(\"needs x: pip install 'jrl[x]'\")"
    file.write_text(TINY.lstrip().replace("def make(config):", f"def make(config):\n    {lacking}"))
    assert jrl("run", str(file), "--directory", "x") == 2
    assert capsys.readouterr().err == "jrl: error: needs x: pip install 'jrl[x]'\n"
    assert not (here / "x").exists()
