"""The clipping experiment from the command line: small, killed and gone on with, and its table."""

import dataclasses
import json
import pathlib
import sys

import pytest
from test_resume import metrics, run, start

from jrl import cli
from jrl.run_directory import UsageError

ROOT = pathlib.Path(__file__).parent.parent
FILE = "experiments/ppo_clipping_table.py"
sys.path.insert(0, str(ROOT / "experiments"))

from ppo_clipping import settings, training  # noqa: E402

SMALL = (
    *("run", FILE, "--environments", "InvertedPendulum", "HalfCheetah"),
    *("--steps", "8192", "--seeds", "1", "--points", "4", "--checkpoint-every", "1"),
    *("--config.num-steps", "1024", "--config.epochs", "2", "--config.eval-episodes", "2"),
)
NAMES = ["none", "clip0.1", "clip0.2", "clip0.3", "akl0.003", "akl0.01", "akl0.03"]
NAMES += ["kl0.3", "kl1", "kl3", "kl10"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of an undisturbed run, and what it printed."""
    directory = tmp_path_factory.mktemp("whole") / "runs"
    return directory, run(ROOT, *SMALL, "--directory", str(directory))


def results(directory, names=("InvertedPendulum", "HalfCheetah")):
    """The results without what differs between two runs of the same."""
    kept = {}
    for name in names:
        kept[name] = json.loads((directory / f"{name}.json").read_text())
        for circumstance in ("hours", "steps_per_second"):
            assert kept[name].pop(circumstance) > 0
    return kept


@pytest.mark.slow
def test_every_environment_leaves_its_scores_and_the_table(whole):
    directory, out = whole
    for name, result in results(directory).items():
        assert result["env"] == f"{name}-v5" and result["steps"] == 8192
        assert [setting["name"] for setting in result["settings"]] == NAMES
        assert [s["adaptive"] for s in result["settings"]] == [n[:3] == "akl" for n in NAMES]
        assert result["protocol"].startswith("not the paper's: ")
        assert result["protocol"].endswith("steps=8192, seeds=1")
        for setting in result["settings"]:
            assert len(setting["scores"]) == 1 and len(setting["curves"][0]) == 4
            assert setting["skipped"] == [0.0]
        # The untrained policies: about seven steps of balance, about 100 in lost control costs.
        low, high = {"InvertedPendulum": (3, 20), "HalfCheetah": (-1000, -300)}[name]
        assert low < result["random_score"] < high
    # The progress of each environment: its name, the speed, and eleven scores to a line.
    lines = out.splitlines()
    assert "InvertedPendulum" in lines and "HalfCheetah" in lines
    scores = [line.split() for line in lines if line.startswith("  none ")]
    assert len(scores) == 8 and all(line[::2] == NAMES for line in scores)
    assert sum("steps/s" in line and "left" in line for line in lines) == 8
    for file in ("table.md", "table.csv", "table.tex", "scores.png", "curves.png"):
        assert (directory / file).stat().st_size > 100
    assert "2 of 7 environments" in (directory / "table.md").read_text()


@pytest.mark.slow
def test_a_killed_run_goes_on_bitwise(whole, tmp_path):
    half = tmp_path / "runs"
    process = start(ROOT, *SMALL, "--directory", str(half))
    lines = [""]
    # Of two parts of the second environment the first is surely saved.
    while "HalfCheetah\n" not in lines or sum(line.startswith("step ") for line in lines) < 6:
        lines.append(process.stdout.readline())
        assert lines[-1], process.communicate()
    process.kill()
    process.communicate()
    assert (half / "InvertedPendulum.json").exists() and not (half / "HalfCheetah.json").exists()
    assert "going on from step" in run(ROOT, "resume", str(half))
    assert results(half) == results(whole[0])
    for name in ("InvertedPendulum", "HalfCheetah"):
        assert metrics(half / "training" / name) == metrics(whole[0] / "training" / name)
    for file in ("table.md", "table.csv", "table.tex"):
        assert (half / file).read_text() == (whole[0] / file).read_text()


def load(**options):
    return dataclasses.replace(cli.load_experiment(ROOT / FILE), **options)


def test_quick_stands_for_what_is_not_given():
    quick = load(quick=True).whole()
    assert (quick.environments, quick.steps) == (("InvertedPendulum", "HalfCheetah"), 100_000)
    assert quick.seeds == 1 and quick.protocol().endswith("steps=100000, seeds=1")
    own = load(quick=True, seeds=2, environments=("Hopper",)).whole()
    assert (own.environments, own.steps, own.seeds) == (("Hopper",), 100_000, 2)
    assert load().protocol() == "paper"


def test_results_of_other_options_are_not_mixed(tmp_path):
    small = load(environments=("Reacher",), steps=2048, points=1)
    training.check_same(small, tmp_path / "run")
    training.check_same(dataclasses.replace(small, environments=("Hopper",)), tmp_path / "run")
    with pytest.raises(UsageError, match="seeds is 3 in .*run and now 5: go on with the same"):
        dataclasses.replace(small, seeds=5).run(tmp_path / "run", resume=True)


def test_the_random_policy_is_played_with_any_sizes():
    """The minibatches of the training need not divide anything here."""
    env = settings.environment("Reacher")
    config = dataclasses.replace(settings.CONFIG, num_envs=128, num_steps=16, eval_episodes=4)
    hyper = settings.HYPER
    wide = training.random_score(env, config, hyper, [0, 1])
    assert -160 < wide < -60
    # Costs of actions are most of it: those of a narrow policy, or of clipped actions, are less.
    narrow, inside = {"log_std": -1.0}, {"clip_action": 1.0}
    for changed in (narrow, inside):
        score = training.random_score(env, config, dataclasses.replace(hyper, **changed), [0, 1])
        assert score > 0.8 * wide


def mistake(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", FILE, *arguments])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    here = ("--directory", str(tmp_path / "runs"))
    assert "environments: no 'Ant', choose from" in mistake(capsys, *here, "--environments", "Ant")
    assert "each once" in mistake(capsys, *here, "--environments", "Hopper", "Hopper")
    assert "points=500" in mistake(capsys, *here, "--points", "500", "--environments", "Hopper")
    assert not list(tmp_path.iterdir())
