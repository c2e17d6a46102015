"""Films: episodes of several policies side by side as MP4 or GIF, drawn by MuJoCo off screen.

An experiment can be filmed if it has a method

    episodes(directory, environment=None, wanted=("best", "worst")) -> list of `Episode`
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import itertools
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tyro

from jrl.run_directory import UsageError

__all__ = [
    "Episode",
    "Options",
    "backend",
    "caption",
    "check",
    "choose",
    "film",
    "make",
    "panel",
    "pictures",
    "side_by_side",
    "strides",
]

WIDTH, HEIGHT, STRIP = 480, 352, 48
"""Pixels of a picture and of the strip above it; encoders like multiples of 16."""

RATE = 30
"""Pictures per second that films aim at."""

PROBE = """
import mujoco
mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 16, 16).render()
"""


class Episode(NamedTuple):
    """What a policy did, step by step."""

    environment: str
    label: str
    score: float
    """Of the setting, over its seeds."""
    model: Any
    """`mujoco.MjModel`."""
    qpos: np.ndarray
    """Positions after each step, [T, nq]."""
    rewards: np.ndarray
    """[T]."""
    dt: float
    """Seconds of a step."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Films settings of one environment side by side, by the newest checkpoint of a run."""

    run: tyro.conf.Positional[pathlib.Path]
    """Directory of the run, which may be going on."""
    environment: str | None = None
    """Which environment; None for the first."""
    output: pathlib.Path | None = None
    """An .mp4 or a .gif; None for RUN/ENVIRONMENT.mp4, or .gif without ffmpeg."""
    settings: tuple[str, ...] = ("best", "worst")
    """Two or more settings; best and worst are those by mean score."""
    seconds: float = 20.0
    """Simulated seconds after which a film ends."""


def check(options: Options) -> str:
    """Returns the suffix of the film; nothing heavy is imported.

    Raises UsageError naming the option that does not fit or the package that is missing.
    """
    if len(options.settings) < 2:
        raise UsageError("settings: name two or more, for example --settings best worst")
    if not (math.isfinite(options.seconds) and options.seconds > 0):
        raise UsageError(f"seconds must be a positive number, got {options.seconds}")
    if not all(map(_installed, ("mujoco", "PIL"))):
        raise UsageError("mujoco or pillow is missing, run `pip install 'jrl[mujoco]'`")
    ffmpeg = _ffmpeg() is not None
    if options.output is None:
        return ".mp4" if ffmpeg else ".gif"
    suffix = options.output.suffix.lower()
    if suffix not in (".mp4", ".gif"):
        raise UsageError(f"output must end in .mp4 or .gif, got {options.output}")
    if suffix == ".mp4" and not ffmpeg:
        gif = options.output.with_suffix(".gif")
        raise UsageError(
            "ffmpeg is missing for MP4, run `pip install 'imageio[ffmpeg]'` "
            f"or write a GIF: --output {gif}"
        )
    return suffix


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _ffmpeg() -> str | None:
    """Finds the program: the system's, or the one that comes with imageio."""
    if (found := shutil.which("ffmpeg")) or not _installed("imageio_ffmpeg"):
        return found
    try:
        return importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
    except RuntimeError:
        return None


def backend() -> str:
    """Chooses how MuJoCo draws and sets MUJOCO_GL, which it reads when it is imported.

    What MUJOCO_GL says, else the screen if there is one, else EGL, else OSMesa: the first that
    draws in a process of its own. Raises UsageError if none does, or mujoco is imported already.
    """
    given, linux = os.environ.get("MUJOCO_GL", ""), sys.platform.startswith("linux")
    screen = not linux or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    names = [given] if given else [""] * screen + ["egl", "osmesa"] * linux
    found = next(filter(_draws, names), None)
    if found is None:
        raise UsageError(
            f"MuJoCo cannot draw off screen{f' with MUJOCO_GL={given}' if given else ''}: install "
            "EGL (libegl1 and libgl1; MUJOCO_GL=egl) or OSMesa (libosmesa6; MUJOCO_GL=osmesa)"
        )
    if found != given and "mujoco" in sys.modules:
        raise UsageError(f"mujoco is imported already: set MUJOCO_GL={found} before Python starts")
    os.environ["MUJOCO_GL"] = found
    return found


def _draws(name: str) -> bool:
    # A back end that is missing can end the process that asks for it.
    command, env = [sys.executable, "-c", PROBE], {**os.environ, "MUJOCO_GL": name}
    try:
        return subprocess.run(command, env=env, capture_output=True, timeout=120).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def make(experiment: Any, options: Options, suffix: str) -> pathlib.Path:
    """Films an experiment and returns the path; `suffix` is for a film without a name.

    Raises UsageError if the experiment has no `episodes`.
    """
    if not callable(getattr(experiment, "episodes", None)):
        kind = type(experiment).__name__
        raise UsageError(f"{options.run} cannot be filmed: give its {kind} a method episodes()")
    shown = experiment.episodes(options.run, options.environment, options.settings)
    path = options.output or options.run / f"{shown[0].environment}{suffix}"
    return film(shown, path, options.seconds)


def choose(scores: Mapping[str, float | None], wanted: Sequence[str]) -> dict[str, str]:
    """Returns label -> setting for each that is wanted by its name, or as the best or the worst.

    Raises UsageError for an unknown setting, and if two of the wanted ones are the same.

    >>> choose({"none": 10.0, "clip0.2": 300.0, "kl1": None}, ("best", "worst"))
    {'best: clip0.2': 'clip0.2', 'worst: none': 'none'}
    """
    scored = {name: x for name, x in scores.items() if x is not None and math.isfinite(x)}
    ranked = sorted(scored, key=lambda name: scored[name])
    chosen = {}
    for word in wanted:
        if word in ("best", "worst") and len(ranked) < 2:
            raise UsageError("settings: fewer than two have a score yet, name them instead")
        name = {"best": ranked[-1], "worst": ranked[0]}.get(word, word) if ranked else word
        if name not in scores:
            known = ", ".join(("best", "worst", *scores))
            raise UsageError(f"settings: no {word!r}, choose from {known}")
        if name in chosen.values():
            raise UsageError(f"settings: {word!r} is {name} once more, name another")
        chosen[name if word == name else f"{word}: {name}"] = name
    return chosen


def strides(dt: int | float) -> tuple[int, float]:
    """Returns how many steps lie between two pictures, and how many pictures make a second.

    >>> strides(0.05), strides(0.008)
    ((1, 20.0), (4, 31.25))
    """
    stride = max(1, round(1 / (RATE * dt)))
    return stride, 1 / (stride * dt)


def film(
    episodes: Sequence[Episode], path: str | pathlib.Path, seconds: int | float
) -> pathlib.Path:
    """Draws episodes of one environment at the speed of its own time; returns the path."""
    stride, rate = strides(episodes[0].dt)
    return side_by_side([panel(episode, stride, seconds) for episode in episodes], path, rate)


def panel(episode: Episode, stride: int, seconds: int | float) -> Iterator[np.ndarray]:
    """Yields every `stride`-th picture of an episode, and its last, under a caption."""
    end = min(len(episode.rewards), math.ceil(seconds / episode.dt))
    steps = sorted({*range(0, end, stride), end - 1})
    returns = np.cumsum(episode.rewards)
    drawn = pictures(episode.model, episode.qpos[steps])
    for step, picture in zip(steps, drawn, strict=True):
        over = ", ended" if step == len(episode.rewards) - 1 else ""
        yield caption(
            picture,
            f"{episode.label} (mean score {episode.score:,.1f})\n"
            f"return {returns[step]:,.1f} at {(step + 1) * episode.dt:.1f} s{over}",
        )


def pictures(model: Any, qpos: np.ndarray) -> Iterator[np.ndarray]:
    """Yields a picture u8 [HEIGHT, WIDTH, 3] of each position, off screen.

    From the model's first camera, which follows the robot in Gymnasium's models, or from afar.
    """
    mujoco: Any = importlib.import_module("mujoco")
    data, camera = mujoco.MjData(model), 0 if model.ncam else -1
    with mujoco.Renderer(model, HEIGHT, WIDTH) as renderer:
        for position in qpos:
            data.qpos[:] = position
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera)
            yield renderer.render()


def caption(picture: np.ndarray, text: str) -> np.ndarray:
    """Puts a white strip with a text of two lines above a picture u8 [H, W, 3].

    >>> caption(np.zeros((20, 100, 3), np.uint8), "clip0.2").shape
    (68, 100, 3)
    """
    from PIL import Image, ImageDraw, ImageFont

    strip = Image.new("RGB", (picture.shape[1], STRIP), "white")
    font = ImageFont.load_default(15)
    ImageDraw.Draw(strip).multiline_text((8, 4), text, fill="black", font=font, spacing=4)
    return np.concatenate([np.asarray(strip), picture])


def side_by_side(
    panels: Sequence[Iterable[np.ndarray]], path: str | pathlib.Path, fps: int | float
) -> pathlib.Path:
    """Writes an MP4 or a GIF, by the suffix of `path`, which it returns.

    The pictures u8 [H, W, 3] of all panels are equally high. A panel that is shorter than another
    keeps its last picture. An MP4 takes ffmpeg, a GIF pillow. Raises UsageError if ffmpeg fails.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write = _write_mp4 if path.suffix.lower() == ".mp4" else _write_gif
    write(map(np.hstack, _together(panels)), path, float(fps))
    return path


def _write_gif(frames: Iterator[np.ndarray], path: pathlib.Path, fps: float) -> None:
    from PIL import Image

    first, *rest = (Image.fromarray(frame).quantize(dither=Image.Dither.NONE) for frame in frames)
    # GIF counts time in hundredths of a second.
    duration = max(20, 10 * round(100 / fps))
    first.save(path, save_all=True, append_images=rest, duration=duration, loop=0)


def _write_mp4(frames: Iterator[np.ndarray], path: pathlib.Path, fps: float) -> None:
    first = next(frames)
    size = f"{first.shape[1]}x{first.shape[0]}"
    # Half as many colours as pixels along each side: both must be even.
    even = "pad=ceil(iw/2)*2:ceil(ih/2)*2"
    command = f"-y -loglevel error -f rawvideo -pix_fmt rgb24 -s {size} -r {fps} -i - -vf {even}"
    command += " -c:v libx264 -pix_fmt yuv420p -movflags +faststart"
    words = [_ffmpeg() or "ffmpeg", *command.split(), str(path)]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(words, stdin=subprocess.PIPE, stderr=errors) as process,
    ):
        stream: Any = process.stdin
        # What ffmpeg does not take, it explains.
        with contextlib.suppress(BrokenPipeError):
            for frame in itertools.chain([first], frames):
                stream.write(frame.tobytes())
            stream.close()
        if process.wait():
            errors.seek(0)
            text = errors.read().decode(errors="replace").strip()
            raise UsageError(f"ffmpeg failed, write a .gif instead: {text[-300:]}")


def _together(panels: Sequence[Iterable[np.ndarray]]) -> Iterator[list[np.ndarray]]:
    """Yields one picture of every panel at a time."""
    last: list[Any] = [None] * len(panels)
    for pictures in itertools.zip_longest(*panels):
        last = [old if new is None else new for old, new in zip(last, pictures, strict=True)]
        yield last
