"""Films: who is in them, what is on a picture, files that can be read back, one line of error."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jrl import cli, video
from jrl.experiment import Experiment
from jrl.run_directory import RunDirectory, UsageError

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "experiments"))

from ppo_clipping import episodes, settings  # noqa: E402

FILMED = '''
"""Can be filmed."""
import dataclasses
import numpy as np
from jrl.video import Episode


@dataclasses.dataclass(frozen=True)
class Filmed:
    """Has episodes of 10 and 4 steps."""

    def validate(self): ...

    def run(self, directory, resume=False):
        return {}

    def episodes(self, directory, environment=None, wanted=()):
        name = environment or "Nowhere"
        return [
            Episode(name, w, 1.0, None, np.arange(float(n))[:, None], np.ones(n), 0.05)
            for w, n in zip(wanted, (10, 4))
        ]


experiment = Filmed()
'''


def fake_pictures(model, qpos):
    """Pictures that say which position they are of."""
    for (position,) in qpos:
        yield np.full((64, 96, 3), 20 * position, np.uint8)


@pytest.fixture
def drawn(monkeypatch):
    """A machine that can draw, without drawing, and has no ffmpeg."""
    monkeypatch.setattr(video, "pictures", fake_pictures)
    monkeypatch.setattr(video, "_draws", lambda name: True)
    monkeypatch.setattr(video, "_ffmpeg", lambda: None)
    monkeypatch.setenv("MUJOCO_GL", "egl")


def jrl(*arguments):
    """Runs a command in this process and returns its exit code."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    return stop.value.code


def read_gif(path):
    with Image.open(path) as image:
        frames = []
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")))
        return frames, image.info["duration"]


def test_best_and_worst_are_by_score():
    scores = {"a": 1.0, "b": -5.0, "c": 9.0, "d": None, "e": float("nan")}
    assert video.choose(scores, ("best", "worst")) == {"best: c": "c", "worst: b": "b"}
    assert video.choose(scores, ("d", "worst", "a")) == {"d": "d", "worst: b": "b", "a": "a"}
    assert list(video.choose({"a": 1.0, "b": 1.0}, ("best", "worst")).values()) == ["b", "a"]
    with pytest.raises(UsageError, match="no 'x', choose from best, worst, a, b, c, d, e"):
        video.choose(scores, ("x", "a"))
    with pytest.raises(UsageError, match="'best' is c once more"):
        video.choose(scores, ("c", "best"))
    with pytest.raises(UsageError, match="fewer than two have a score"):
        video.choose({"a": 1.0, "b": None}, ("best", "worst"))
    assert video.choose({"a": None, "b": None}, ("a", "b")) == {"a": "a", "b": "b"}


def test_caption_leaves_the_picture_alone():
    picture = np.random.default_rng(0).integers(0, 255, (32, 200, 3), np.uint8)
    framed = video.caption(picture, "one\ntwo")
    np.testing.assert_array_equal(framed[video.STRIP :], picture)
    strip = framed[: video.STRIP]
    assert strip.min() < 50 and np.median(strip) == 255
    assert (strip[:24] < 50).any() and (strip[24:] < 50).any(), "both lines fit"
    assert (video.caption(picture, "three") != framed).any()


def test_panel_says_what_was_reached(monkeypatch):
    texts = []
    monkeypatch.setattr(video, "pictures", fake_pictures)
    monkeypatch.setattr(video, "caption", lambda x, text: texts.append(text) or x)
    qpos, rewards = np.arange(8.0)[:, None], np.arange(8.0)
    episode = video.Episode("Env", "best: x", 1234.56, None, qpos, rewards, 0.5)
    frames = list(video.panel(episode, 3, 100.0))
    assert [int(frame[0, 0, 0]) for frame in frames] == [0, 60, 120, 140], "every third, the last"
    assert texts[1] == "best: x (mean score 1,234.6)\nreturn 6.0 at 2.0 s"
    assert texts[-1].endswith("return 28.0 at 4.0 s, ended")
    assert len(list(video.panel(episode, 3, 2.0))) == 2 and texts[-1].endswith("at 2.0 s")


def test_gif_comes_back(tmp_path):
    first = [np.full((16, 24, 3), 10 * i, np.uint8) for i in range(6)]
    second = [np.full((16, 8, 3), 255 - 10 * i, np.uint8) for i in range(3)]
    path = video.side_by_side([first, second], tmp_path / "new" / "x.gif", 20)
    frames, duration = read_gif(path)
    assert len(frames) == 6 and duration == 50
    for i, frame in enumerate(frames):
        assert frame.shape == (16, 32, 3)
        assert (frame[:, :24] == 10 * i).all() and (frame[:, 24:] == 255 - 10 * min(i, 2)).all()


def fake_ffmpeg(directory, script):
    program = directory / "ffmpeg"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_mp4_is_fed_to_ffmpeg(tmp_path, monkeypatch):
    """The last word of the command is the file, the pictures come in through the pipe."""
    script = 'for last; do :; done\necho "$@" > "$last.words"\ncat > "$last"'
    monkeypatch.setattr(video, "_ffmpeg", lambda: fake_ffmpeg(tmp_path, script))
    frames = [np.full((4, 6, 3), i, np.uint8) for i in range(5)]
    path = video.side_by_side([frames, frames[:2]], tmp_path / "x.mp4", 25)
    raw = np.frombuffer(path.read_bytes(), np.uint8).reshape(5, 4, 12, 3)
    left, right = raw[:, 0, 0, 0].tolist(), raw[:, 0, 6, 0].tolist()
    assert (left, right) == ([0, 1, 2, 3, 4], [0, 1, 1, 1, 1])
    words = (tmp_path / "x.mp4.words").read_text()
    assert "-s 12x4 -r 25.0 " in words and "libx264" in words


def test_a_failure_of_ffmpeg_is_one_line(tmp_path, monkeypatch):
    script = 'echo "Unknown encoder" >&2\nexit 1'
    monkeypatch.setattr(video, "_ffmpeg", lambda: fake_ffmpeg(tmp_path, script))
    frames = (np.zeros((400, 600, 3), np.uint8) for _ in range(50))
    with pytest.raises(UsageError, match=r"ffmpeg failed, write a .gif instead: Unknown encoder"):
        video.side_by_side([frames], tmp_path / "x.mp4", 25)


def filmed(tmp_path, text=FILMED):
    (tmp_path / "filmed.py").write_text(text.lstrip())
    return RunDirectory.create(tmp_path / "run", {}, tmp_path / "filmed.py").path


def test_command(tmp_path, drawn, capsys):
    run = filmed(tmp_path)
    assert jrl("video", str(run)) == 0
    assert capsys.readouterr().out == f"{run}/Nowhere.gif\n"
    frames, duration = read_gif(run / "Nowhere.gif")
    assert len(frames) == 10 and duration == 50 and frames[0].shape == (64 + video.STRIP, 192, 3)
    assert frames[-1][-1, 0, 0] == 180 and frames[-1][-1, -1, 0] == 60, "the shorter one stays"
    output = tmp_path / "b.gif"
    options = ("--environment", "Here", "--settings", "x", "y", "--seconds", "0.25")
    assert jrl("video", str(run), *options, "--output", str(output)) == 0
    assert len(read_gif(output)[0]) == 5


BAD = {
    "no run": (["nowhere"], "nowhere is no run"),
    "one setting": (["run", "--settings", "best"], "settings: name two or more"),
    "no time": (["run", "--seconds", "0"], "seconds must be a positive number, got 0.0"),
    "suffix": (["run", "--output", "x.avi"], "output must end in .mp4 or .gif, got x.avi"),
    "no ffmpeg": (
        ["run", "--output", "x.mp4"],
        "'imageio[ffmpeg]'` or write a GIF: --output x.gif",
    ),
    "no method": (["run"], "run cannot be filmed: give its Filmed a method episodes()"),
    "nothing": ([], "see jrl video --help"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_cost_one_line(case, tmp_path, drawn, capsys, monkeypatch):
    filmed(tmp_path, FILMED.replace("def episodes", "def films"))
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[case]
    assert jrl("video", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("jrl: error: ")
    assert not list(tmp_path.rglob("*.gif"))


def test_a_copy_older_than_films_gives_way_to_its_file(tmp_path, drawn, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = filmed(tmp_path, FILMED.replace("def episodes", "def films"))
    (tmp_path / "filmed.py").write_text(FILMED.lstrip())
    assert jrl("video", str(run)) == 0


def test_missing_packages_are_named(tmp_path, drawn, monkeypatch, capsys):
    run = filmed(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert jrl("video", str(run)) == 2
    assert "run `pip install 'jrl[mujoco]'`" in capsys.readouterr().err


def test_back_ends_are_tried_in_order(monkeypatch):
    tried = []
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(video, "_draws", lambda name: tried.append(name) or name == "osmesa")
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    assert video.backend() == os.environ["MUJOCO_GL"] == "osmesa" and tried == ["egl", "osmesa"]
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(UsageError, match="draw off screen with MUJOCO_GL=egl: install EGL"):
        video.backend()
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setitem(sys.modules, "mujoco", sys)
    with pytest.raises(UsageError, match="set MUJOCO_GL=osmesa before Python starts"):
        video.backend()


REAL = """
import numpy as np
from jrl import video
video.backend()
import mujoco
xml = "<mujoco><worldbody><light pos='0 0 3'/><body><joint type='slide'/><geom size='.1'/>"
model = mujoco.MjModel.from_xml_string(xml + "</body></worldbody></mujoco>")
near, far = video.pictures(model, np.array([[0.0], [0.1]]))
assert near.shape == (video.HEIGHT, video.WIDTH, 3) and near.max() > 50 and (near != far).any()
"""


def test_mujoco_draws_or_says_what_is_missing():
    env = {k: v for k, v in os.environ.items() if k != "MUJOCO_GL"}
    done = subprocess.run([sys.executable, "-c", REAL], env=env, capture_output=True, text=True)
    assert done.returncode == 0 or "install EGL (libegl1" in done.stderr, done.stderr


@pytest.mark.slow
def test_episodes_of_a_run_that_goes_on(tmp_path):
    """Nothing in the run's directory changes, and the median seed plays."""
    chosen = {name: settings.SETTINGS[name] for name in ("none", "clip0.2")}
    config = dataclasses.replace(
        settings.CONFIG, num_steps=64, epochs=1, hidden=(8,), minibatches=2
    )
    env = settings.environment("InvertedPendulum", "callback")
    experiment = Experiment(
        "InvertedPendulum",
        lambda config: settings.algorithm(env, config),
        config,
        settings.HYPER,
        steps=512,
        seeds=3,
        settings=chosen,
        points=4,
        tensorboard=False,
    )
    experiment.run(tmp_path / "run", quiet=True)
    run = RunDirectory(tmp_path / "run")
    run.summary_file.unlink()
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    wanted, engine = ("best", "worst"), "callback"
    shown = episodes.play(experiment, run.path, "InvertedPendulum", wanted, engine)
    assert before == {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    last = [row for row in run.rows() if row["step"] == 512]
    means = {
        name: np.mean([row["means"]["eval/return"] for row in last if row["setting"] == name])
        for name in chosen
    }
    assert [x.label for x in shown] == list(video.choose(means, wanted))
    for episode in shown:
        steps = len(episode.rewards)
        assert episode.qpos.shape == (steps, 2) and episode.environment == "InvertedPendulum"
        assert episode.score == pytest.approx(means[episode.label.split(": ")[1]])
        assert 1 < steps < 1000 and (np.abs(episode.qpos[:-1, 1]) <= 0.2).all(), "it falls once"
        assert abs(episode.qpos[-1, 1]) > 0.2 and episode.dt == pytest.approx(0.04)
    again = episodes.play(experiment, run.path, "InvertedPendulum", wanted, engine)
    np.testing.assert_array_equal(again[0].qpos, shown[0].qpos)
    with pytest.raises(UsageError, match="seeds is 3 in .* and now 4: use the same options"):
        dataclasses.replace(experiment, seeds=4).restore(run.path)
    with pytest.raises(UsageError, match="Hopper has no checkpoint yet"):
        episodes.play(experiment, tmp_path, "Hopper", wanted)
