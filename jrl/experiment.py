"""Experiments: what a file in `experiments/` builds and `jrl run` runs.

The command line knows two methods, so any frozen dataclass that has them is an experiment:

    validate() -> None                          raises ValueError: one line, the field and the fix
    run(directory, resume=False) -> summary     works in that directory, returns what goes on record

`Experiment` is the one for everything that is an `Algorithm`: a population of settings x seeds
as one program, run in parts; after each part the state is saved while the next one runs.
"""

import dataclasses
import functools
import importlib.util
import math
import pathlib
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jrl import grid, loop
from jrl.checkpoint import Checkpointer
from jrl.progress import Progress, stopping, wait
from jrl.run_directory import (
    Recorder,
    Row,
    RunDirectory,
    UsageError,
    difference,
    interval,
    plain,
    versions,
)
from jrl.types import Algorithm

__all__ = ["Experiment", "Plan", "Runnable"]

UNCOMPARED = ("devices", "keep", "tensorboard", "wandb")
"""Fields that may differ between a run and its continuation."""


@runtime_checkable
class Runnable(Protocol):
    """All that the command line knows of an experiment."""

    def validate(self) -> None:
        """Raises ValueError with one line that names the field and the fix."""
        ...

    def run(self, directory: pathlib.Path, resume: bool = False) -> dict[str, Any]:
        """Runs in `directory` and returns the summary."""
        ...


class Plan(NamedTuple):
    """What an experiment comes to, in whole numbers."""

    algorithm: Algorithm
    settings: tuple[tuple[str, grid.Setting], ...]
    """(label, what it changes in the `Hyper`) of each point of the grid."""
    members: int
    iterations: int
    """Iterations between two points."""
    steps_per_point: int
    steps: int
    requested: int


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A population: every setting of `sweep` with every seed, all trained at once.

    `make(config)` returns the `Algorithm`. Every `steps / points` environment steps each member
    is evaluated; `steps` is rounded up to whole iterations, equally many for each point, which
    the summary says. A field `total_steps` of the config follows `steps`.
    """

    name: str
    """Name of the default directory below runs/."""
    make: tyro.conf.Suppress[Callable[[Any], Algorithm]]
    """config -> Algorithm."""
    config: Any
    """Sizes, compiled in."""
    hyper: Any
    """Numbers that the sweep may vary."""
    steps: int | None = None
    """Environment steps of every member; None for the config's total_steps."""
    seeds: int = 4
    """Members of each setting."""
    seed: int = 0
    """The first seed; the others follow it."""
    settings: tyro.conf.Suppress[dict[str, grid.Setting]] = dataclasses.field(default_factory=dict)
    """Named settings, label -> what it changes in `hyper`; a sweep is made of each of them."""
    sweep: grid.Sweep = dataclasses.field(default_factory=dict)
    """Values of hyper-parameters, for example `clip_eps=0.1,0.2 anneal=0,1` for a grid of four."""
    points: int = 20
    """Evaluations, equally far apart."""
    checkpoint_every: int = 2
    """Points between two checkpoints: what a kill can cost, and what a stop waits for."""
    keep: int = 2
    """Checkpoints kept."""
    devices: int | None = None
    """Devices the members are split over; None for as many as have something to do."""
    tensorboard: bool = True
    """Write event files."""
    wandb: str | None = None
    """Project on Weights & Biases to log to."""

    def __post_init__(self):
        """Makes every number of `hyper` and `sweep` a float: compiled code tells 1 from 1.0."""
        object.__setattr__(self, "hyper", grid.floats(self.hyper))
        sweep = {name: tuple(map(float, values)) for name, values in self.sweep.items()}
        object.__setattr__(self, "sweep", sweep)

    def validate(self) -> None:
        """Raises ValueError with one line that names the field and the fix."""
        self.plan()
        if self.devices is not None:
            self._mesh()

    def plan(self) -> Plan:
        """Checks every field and works the sizes out; compiles nothing."""
        for name in ("steps", "seeds", "points", "checkpoint_every", "keep", "devices"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.seed < 0 or self.seed + self.seeds > 2**32:
            raise ValueError(f"seed must be between 0 and 2^32 - seeds, got {self.seed}")
        if self.wandb is not None and importlib.util.find_spec("wandb") is None:
            raise ValueError("wandb: the package is missing, run `pip install wandb`")
        grid.check(self.hyper, self.sweep, self.settings)
        requested = self.steps or getattr(self.config, "total_steps", None)
        if requested is None:
            raise ValueError("steps must be given: the config has no total_steps to take it from")
        algorithm = self.make(_with_steps(self.config, requested))
        unit = algorithm.steps_per_iteration
        needed = math.ceil(requested / unit)
        if needed < self.points:
            raise ValueError(
                f"steps={requested} is {needed} iterations of {unit} steps, fewer than "
                f"points={self.points}: raise steps to {self.points * unit} or lower points"
            )
        iterations = math.ceil(needed / self.points)
        steps = iterations * unit * self.points
        if steps != requested:
            algorithm = self.make(_with_steps(self.config, steps))
        settings = grid.settings(self.sweep, self.settings)
        members = len(settings) * self.seeds
        return Plan(algorithm, settings, members, iterations, iterations * unit, steps, requested)

    def run(
        self,
        directory: str | pathlib.Path,
        resume: bool = False,
        quiet: bool = False,
        command: str | None = None,
    ) -> dict[str, Any]:
        """Trains the population, or goes on from its last checkpoint, and returns the summary.

        The first SIGTERM or SIGINT lets the part in progress end, saves it and returns a
        summary whose "finished" is False; the second raises KeyboardInterrupt. Raises
        UsageError if `directory` holds a run and `resume` is not set, or one with other options
        if it is. `command` is what goes on with it, by default `jrl resume`.
        """
        plan, run = self.plan(), self._open(directory, resume)
        command = command or f"jrl resume {run.path}"
        if run.summary_file.exists():
            return run.summary()
        with (
            run.lock(),
            Checkpointer(run.checkpoints, self.keep) as checkpointer,
            Progress(plan.steps, plan.members, quiet) as progress,
            stopping(command) as stop,
        ):
            members, hps, mesh = self._population(plan)
            progress.say(f"members {plan.members}, steps {plan.steps:,}, devices {mesh.size}")
            members, done, spent = _restore(checkpointer, members, run, plan, progress)
            members, hps = (loop.place(x, plan.members, mesh) for x in (members, hps))
            recorder = Recorder(run, self.tensorboard, self.wandb)
            # A program that calls back cannot be kept in the persistent cache of compilations.
            report = progress.point(plan.steps_per_point) if progress.live else None
            program: Any = loop.make_program(
                plan.algorithm, plan.iterations, mesh, report, plan.members
            )
            compiled = {}
            while done < self.points and not stop.is_set():
                began, points = time.perf_counter(), min(self.checkpoint_every, self.points - done)
                if points not in compiled:
                    lowered = program.lower(members, hps, points)
                    compiled[points] = wait(lowered.compile, stop, progress)
                    spent["compile_seconds"] += time.perf_counter() - began
                if stop.is_set():
                    break
                task = functools.partial(_part, compiled[points], members, hps, plan.members)
                members, history = wait(task, stop, progress)
                recorder.write(rows := self._rows(plan, history, done))
                done += points
                spent["seconds"] += time.perf_counter() - began
                saved = loop.split(loop.resize(members, plan.members))
                checkpointer.save(done, saved, {"step": done, "spent": spent})
                scores = _scores(rows[-plan.members :])
                progress.part(done * plan.steps_per_point, _means(history), spent, scores)
            jax.effects_barrier()
            recorder.close()
            checkpointer.wait()
            if done == self.points:
                summary = self._summary(plan, run, spent)
                run.write_summary(summary)
                return plain(summary)
            step = done * plan.steps_per_point
            progress.say(
                f"stopped and saved at step {step:,} of {plan.steps:,}: go on with `{command}`"
            )
            return {"finished": False, "step": step, "steps": plan.steps}

    def restore(self, directory: str | pathlib.Path) -> tuple[loop.Member, Plan]:
        """Reads the newest checkpoint of a run, which may be going on; touches nothing there.

        Where the code has moved on, fields of `config` and `hyper` that only one side knows are
        passed over. Raises UsageError if there is no checkpoint, or if options differ.
        """
        plan, run = self.plan(), RunDirectory(directory)
        if found := _changed(*_known(run.config["values"], plain(self))):
            name, old, new = found
            raise UsageError(f"{name} is {old} in {run.path} and now {new}: use the same options")
        target = jax.eval_shape(
            functools.partial(loop.population, plan.algorithm), *self._seeds(plan)
        )
        try:
            with Checkpointer(run.checkpoints, read_only=True) as checkpointer:
                return loop.join(checkpointer.restore(loop.split(target)).items), plan
        except FileNotFoundError:
            raise UsageError(f"{run.path} has no checkpoint yet: wait for the first") from None

    def _open(self, directory, resume: bool) -> RunDirectory:
        values = plain(self)
        if not (pathlib.Path(directory) / "config.json").exists():
            return RunDirectory.create(directory, values)
        run = RunDirectory(directory)
        if run.started and not resume:
            raise UsageError(f"{run.path} exists: resume it or choose another directory")
        if found := _changed(run.config["values"], values):
            name, old, new = found
            raise UsageError(
                f"{name} is {old} in {run.path} and now {new}: "
                f"go on with the same options, or start another directory"
            )
        return run

    def _mesh(self):
        settings = grid.settings(self.sweep, self.settings)
        return loop.make_mesh(self.seeds * len(settings), self.devices)

    def _population(self, plan: Plan):
        """Starts all members, on their devices from the first program on: it compiles once."""
        keys, hps = self._seeds(plan)
        return loop.population(plan.algorithm, keys, hps), hps, self._mesh()

    def _seeds(self, plan: Plan):
        """Returns the key and the `Hyper` of every member."""
        seeds = jnp.arange(self.seed, self.seed + self.seeds, dtype=jnp.uint32)
        keys = jax.vmap(jax.random.key)(jnp.tile(seeds, len(plan.settings)))
        return keys, grid.stack(self.hyper, plan.settings, self.seeds)

    def _rows(self, plan: Plan, history: dict[str, Any], done: int) -> list[Row]:
        means = {name: _divide(*sums) for name, sums in history.items()}
        return [
            {
                "step": (done + point + 1) * plan.steps_per_point,
                "setting": plan.settings[i // self.seeds][0],
                "seed": self.seed + i % self.seeds,
                "means": {name: _number(x[point, i]) for name, x in means.items()},
            }
            for point in range(len(next(iter(means.values()))))
            for i in range(plan.members)
        ]

    def _summary(self, plan: Plan, run: RunDirectory, spent) -> dict[str, Any]:
        training = max(spent["seconds"] - spent["compile_seconds"], 1e-9)
        device = jax.devices()[0]
        last = [row for row in run.rows() if row["step"] == plan.steps]
        settings = []
        for label, setting in plan.settings:
            rows = [row["means"] for row in last if row["setting"] == label]
            finals = {
                name: interval(means[name] for means in rows if means[name] is not None)
                for name in rows[0]
            }
            entry = {"setting": label, "hyper": dataclasses.replace(self.hyper, **setting)}
            settings.append(entry | {"return": finals.get("eval/return"), "final": finals})
        rounded = (
            f"steps: {plan.steps} instead of {plan.requested}, rounded up to "
            f"{self.points} points of {plan.iterations} whole iterations"
        )
        return {
            "finished": True,
            "name": self.name,
            "settings": settings,
            "interval": "95 % Student t interval over seeds, at the last evaluation",
            "seeds": self.seeds,
            "population": plan.members,
            "steps": plan.steps,
            "steps_requested": plan.requested,
            "note": rounded if plan.steps != plan.requested else None,
            "seconds": spent["seconds"],
            "compile_seconds": spent["compile_seconds"],
            "steps_per_second": plan.steps * plan.members / training,
            "devices": self._mesh().size,
            "device": f"{device.platform}: {device.device_kind}",
            "versions": versions(),
            "git_commit": run.config.get("git_commit"),
        }


def _changed(saved: Row, now: Row) -> tuple[str, Any, Any] | None:
    """Finds the first of the saved options that is another one now."""
    saved = {name: x for name, x in saved.items() if name not in UNCOMPARED}
    return difference(saved, {name: now.get(name) for name in saved})


def _known(saved: Row, now: Row) -> tuple[Row, Row]:
    """Keeps what both sides know: between them the code can have moved on."""
    saved = {name: x for name, x in saved.items() if name != "make"}
    for part in ("config", "hyper"):
        if isinstance(saved.get(part), dict) and isinstance(now[part], dict):
            both = [name for name in saved[part] if name in now[part]]
            saved, now = ({**x, part: {k: x[part][k] for k in both}} for x in (saved, now))
    return saved, now


def _part(program, members, hps, count: int):
    members, history = program(members, hps)
    # Without those that only fill the devices up.
    return members, jax.tree.map(lambda x: np.asarray(x)[:, :count], history)


def _scores(rows: list[Row]) -> dict[str, float]:
    """Mean score of every setting at one point."""
    scores: dict[str, list[float]] = {row["setting"]: [] for row in rows}
    for row in rows:
        score = row["means"].get("eval/return")
        if score is not None:
            scores[row["setting"]].append(score)
    return {name: sum(x) / len(x) if x else math.nan for name, x in scores.items()}


def _with_steps(config, steps: int):
    if hasattr(config, "total_steps"):
        config = dataclasses.replace(config, total_steps=steps)
    if hasattr(config, "validate"):
        config.validate()
    return config


def _restore(checkpointer: Checkpointer, members, run: RunDirectory, plan: Plan, progress):
    """Returns the newest whole state and forgets whatever was written after it."""
    spent = {"seconds": 0.0, "compile_seconds": 0.0}
    if not checkpointer.steps():
        run.truncate(0)
        return members, 0, spent
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step, items, meta = checkpointer.restore(loop.split(members))
    for warning in caught:
        progress.say(f"warning: {warning.message}")
    checkpointer.discard_after(step)
    run.truncate(step * plan.steps_per_point)
    progress.say(f"going on from step {step * plan.steps_per_point:,}")
    return loop.join(items), step, meta["spent"]


def _divide(sums, weights):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums) / np.asarray(weights)


def _number(x) -> float | None:
    return float(x) if math.isfinite(x) else None


def _means(history) -> dict[str, float]:
    """Means of the last point over the population."""
    return {name: float(_divide(s[-1].sum(), w[-1].sum())) for name, (s, w) in history.items()}
