"""What is shown between the parts of a run."""

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


def test_one_setting_needs_no_line(capsys):
    with Progress(100, 4) as progress:
        progress.part(50, {"loss": 1.0}, SPENT, {"default": 1.0})
    assert capsys.readouterr().out.count("\n") == 1


def test_quiet_is_quiet(capsys):
    with Progress(100, 4, quiet=True) as progress:
        progress.part(50, {"loss": 1.0}, SPENT, {"a": 1.0, "b": 2.0})
    assert capsys.readouterr() == ("", "")
