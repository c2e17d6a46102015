"""A run's directory: what was asked for, what was measured, and what came out of it.

config.json      every option's value, versions, git commit; never changes
experiment.py    the experiment's file as it was
metrics.jsonl    one line for every member at every point
tensorboard/     the same, averaged over seeds, one directory for each setting
checkpoints/     see `jrl.checkpoint`
summary.json     written when the run is finished
"""

import contextlib
import dataclasses
import datetime
import fcntl
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = [
    "Recorder",
    "RunDirectory",
    "UsageError",
    "difference",
    "git_commit",
    "interval",
    "plain",
    "versions",
]

Row = dict[str, Any]
PACKAGES = (
    "jrl",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "chex",
    "numpy",
    "mujoco",
    "gymnasium",
)


class UsageError(ValueError):
    """A mistake of whoever asked, in one line that names it and the fix."""


class RunDirectory:
    """One run's files. `create` makes it, the constructor opens it; neither loads jax."""

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.summary_file = self.path / "summary.json"
        self.checkpoints = self.path / "checkpoints"
        try:
            self.config = json.loads(self.config_file.read_text())
        except (OSError, ValueError):
            raise UsageError(f"{self.path} is no run: it has no readable config.json") from None
        kinds = {"values": dict, "arguments": list, "experiment": str | None}
        config = self.config if isinstance(self.config, dict) else {}
        for key, kind in kinds.items():
            if key not in config or not isinstance(config[key], kind):
                raise UsageError(f"{self.path} is no run: its config.json has no proper {key!r}")

    @classmethod
    def create(
        cls,
        path: str | pathlib.Path,
        values: dict[str, Any],
        source: pathlib.Path | None = None,
        arguments: Iterable[str] = (),
        overwrite: bool = False,
    ) -> "RunDirectory":
        """Makes the directory in one rename: whoever looks sees all of it or nothing.

        `source` is the experiment's file and `arguments` are its options: `jrl resume` needs
        both. Raises UsageError if `path` exists, unless it is a run and `overwrite` is set.
        """
        path = pathlib.Path(path)
        if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
            if not overwrite:
                raise UsageError(
                    f"{path} exists: pass --resume, --overwrite or another --directory"
                )
            with cls(path).lock():
                pass
        config = {
            "experiment": None if source is None else _relative(source),
            "arguments": list(arguments),
            "values": values,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "git_commit": git_commit(source.parent if source else pathlib.Path()),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        fresh.mkdir()
        try:
            (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            if source is not None:
                shutil.copyfile(source, fresh / "experiment.py")
            if path.exists():
                path.rename(old)
            fresh.rename(path)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
        return cls(path)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps a second process out; the system releases it however this process ends."""
        with open(self.path / "lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"{self.path} is in use: another process is running it") from None
            yield

    @property
    def started(self) -> bool:
        """Whether anything was measured or saved."""
        files = (self.metrics_file, self.checkpoints, self.summary_file)
        return any(file.exists() for file in files)

    def state(self) -> str:
        """Returns "finished", "running ..." or "stopped ..." for a list of runs."""
        if self.summary_file.exists():
            return "finished"
        last = max((row["step"] for row in self.rows()), default=0)
        try:
            with self.lock():
                return f"stopped at step {last:,}" if self.started else "not started"
        except UsageError:
            return f"running, step {last:,}"

    def rows(self) -> list[Row]:
        """Reads metrics.jsonl; a last line that a kill cut short does not count."""
        if not self.metrics_file.exists():
            return []
        lines = self.metrics_file.read_text().split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def truncate(self, step: int) -> None:
        """Forgets every row after `step`: the run goes on from there and writes them again."""
        kept = [row for row in self.rows() if row["step"] <= step]
        _write(self.metrics_file, "".join(_line(row) for row in kept))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Writes summary.json, which is what marks the run as finished."""
        _write(self.summary_file, json.dumps(plain(summary), indent=2) + "\n")

    def summary(self) -> dict[str, Any]:
        """Reads summary.json."""
        return json.loads(self.summary_file.read_text())


class Recorder:
    """Writes rows to metrics.jsonl, to TensorBoard and, if asked to, to Weights & Biases.

    A row has `step`, `setting`, `seed` and `means` (name -> float). Event files cannot be
    shortened, so they are written anew from the rows that are there already.
    """

    def __init__(self, run: RunDirectory, tensorboard: bool = True, wandb: str | None = None):
        self.run, self._tensorboard, self._writers = run, tensorboard, {}
        self._wandb = _start_wandb(run, wandb) if wandb else None
        shutil.rmtree(run.path / "tensorboard", ignore_errors=True)
        self._events(run.rows())

    def write(self, rows: list[Row]) -> None:
        """Appends; everything is on disk when it returns, so that no checkpoint is ahead of it."""
        with open(self.run.metrics_file, "a") as file:
            file.writelines(_line(row) for row in rows)
            file.flush()
            os.fsync(file.fileno())
        self._events(rows)

    def close(self) -> None:
        """Closes the event files and the online run."""
        for writer in self._writers.values():
            writer.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _events(self, rows: list[Row]) -> None:
        if not self._tensorboard and self._wandb is None:
            return
        for (step, setting), means in _over_seeds(rows).items():
            if self._tensorboard:
                writer = self._writer(setting)
                for name, mean in means.items():
                    writer.add_scalar(name, mean, step)
            if self._wandb is not None:
                self._wandb.log({f"{setting}/{name}": x for name, x in means.items()}, step=step)
        for writer in self._writers.values():
            writer.flush()

    def _writer(self, setting: str):
        if setting not in self._writers:
            from tensorboardX import SummaryWriter

            directory = self.run.path / "tensorboard" / setting.replace("/", "_")
            self._writers[setting] = SummaryWriter(str(directory))
        return self._writers[setting]


def interval(values: Iterable[float], level: float = 0.95) -> dict[str, Any]:
    """Returns the mean and its Student t interval: mean +- t sd / sqrt(n), none for one value.

    >>> x = interval([1.0, 2.0, 3.0])
    >>> x["mean"], round(x["low"], 3), round(x["high"], 3), x["n"]
    (2.0, -0.484, 4.484, 3)
    """
    values = [float(x) for x in values if math.isfinite(x)]
    n = len(values)
    if n < 2:
        return {"mean": values[0] if n else None, "low": None, "high": None, "n": n}
    mean = statistics.fmean(values)
    half = _t_quantile(level, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def plain(x: Any) -> Any:
    """Turns dataclasses, arrays, functions and infinities into what JSON can hold."""
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return {f.name: plain(getattr(x, f.name)) for f in dataclasses.fields(x)}
    if isinstance(x, dict):
        return {str(plain(k)): plain(v) for k, v in x.items()}
    if isinstance(x, functools.partial):
        return {"function": plain(x.func), "args": plain(x.args), **plain(x.keywords)}
    if isinstance(x, list | tuple):
        return [plain(v) for v in x]
    if (tolist := getattr(x, "tolist", None)) is not None and not isinstance(x, type):
        return plain(tolist())
    if isinstance(x, float) and not math.isfinite(x):
        return str(x)
    if x is None or isinstance(x, bool | int | float | str):
        return x
    if callable(x) and hasattr(x, "__qualname__"):
        return f"{getattr(x, '__module__', '')}.{x.__qualname__}"
    # The default representation holds an address, which differs from run to run.
    return type(x).__qualname__ if type(x).__repr__ is object.__repr__ else repr(x)


def difference(saved: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Finds the first field, however deep, that differs: its name and both its values.

    >>> difference({"seeds": 2, "hyper": {"clip": 0.1}}, {"seeds": 2, "hyper": {"clip": 0.2}})
    ('hyper.clip', 0.1, 0.2)
    """
    if not (isinstance(saved, dict) and isinstance(now, dict)):
        return None if saved == now else (name, saved, now)
    for key in [*saved, *(key for key in now if key not in saved)]:
        path = f"{name}.{key}" if name else key
        if found := difference(saved.get(key), now.get(key), path):
            return found
    return None


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a result depends on."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def git_commit(directory: pathlib.Path = pathlib.Path()) -> str | None:
    """Returns the commit that is checked out around `directory`, marked if files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=-modified"]
    try:
        out = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() or None


def _relative(file: pathlib.Path) -> str:
    """Keeps the machine's directories out: relative to here, else the name alone."""
    file, here = file.absolute(), pathlib.Path().absolute()
    return file.relative_to(here).as_posix() if file.is_relative_to(here) else file.name


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _write(file: pathlib.Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.new")
    with open(temporary, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)


def _over_seeds(rows: list[Row]) -> dict[tuple[int, str], dict[str, float]]:
    groups: dict[tuple[int, str], dict[str, list[float]]] = {}
    for row in rows:
        group = groups.setdefault((row["step"], row["setting"]), {})
        for name, mean in row["means"].items():
            if mean is not None:
                group.setdefault(name, []).append(mean)
    return {
        place: {name: statistics.fmean(xs) for name, xs in group.items()}
        for place, group in groups.items()
    }


def _start_wandb(run: RunDirectory, project: str):
    """Starts an online run, or goes on with the one that this directory began."""
    if importlib.util.find_spec("wandb") is None:
        raise UsageError("wandb: the package is missing, run `pip install wandb`")
    wandb = importlib.import_module("wandb")
    file = run.path / "wandb_id.txt"
    known = file.read_text() if file.exists() else None
    started = wandb.init(
        project=project,
        name=run.path.name,
        id=known,
        resume="allow",
        dir=str(run.path),
        config=run.config["values"],
    )
    file.write_text(started.id)
    return started


def _t_quantile(level: float, degrees: int) -> float:
    """Solves P(|T| <= t) = level by bisection."""
    low, high = 0.0, 1.0
    while _t_inside(high, degrees) < level:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, degrees) < level else (low, middle)
    return (low + high) / 2


def _t_inside(t: float, degrees: int) -> float:
    """P(|T| <= t), a finite sum: Abramowitz & Stegun 1964, eqs. 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    cos2 = math.cos(angle) ** 2
    odd = degrees % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(1, degrees // 2 + 1):
        total += term
        term *= cos2 * (2 * k / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
