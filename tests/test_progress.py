"""What is shown between the parts of a run."""

import pytest

from jrl.progress import SETTINGS, Progress

SPENT = {"seconds": 3.0, "compile_seconds": 1.0}


def test_every_setting_is_shown_in_lines(capsys):
    scores = {f"s{i}": float(i) for i in range(SETTINGS + 3)}
    with Progress(100, 4) as progress:
        progress.part(50, {"loss": 1.0}, SPENT, scores)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "step 50/100  100 steps/s  0:00:02 left  loss 1"
    assert [word for line in lines for word in line.split()[::2]] == list(scores)
    assert len(lines) == 2


@pytest.mark.parametrize(
    "step, seconds, shown",
    [(50, 1.0, "50"), (20, 2.0, "10"), (50, 20.0, "2.5"), (1, 3.0, "0.33"), (3, 500.0, "0.006")],
)
def test_slow_runs_have_decimals(step, seconds, shown, capsys):
    with Progress(100, 1) as progress:
        progress.part(step, {}, {"seconds": seconds, "compile_seconds": 0.0})
    assert capsys.readouterr().out.startswith(f"step {step}/100  {shown} steps/s  ")


def test_rewards_are_shown_first(capsys):
    means = {"kl": 1.0, "length": 2.0, "loss": 3.0, "reward": 4.0, "eval/kl": 5.0}
    with Progress(100, 1) as progress:
        progress.part(50, means | {"eval/reward": 6.0}, SPENT)
    assert capsys.readouterr().out.endswith("  eval/reward 6  reward 4  loss 3\n")


def test_one_setting_needs_no_line(capsys):
    with Progress(100, 4) as progress:
        progress.part(50, {"loss": 1.0}, SPENT, {"default": 1.0})
    assert capsys.readouterr().out.count("\n") == 1


def test_quiet_is_quiet(capsys):
    with Progress(100, 4, quiet=True) as progress:
        progress.part(50, {"loss": 1.0}, SPENT, {"a": 1.0, "b": 2.0})
    assert capsys.readouterr() == ("", "")
