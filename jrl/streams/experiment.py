"""Runs of algorithms whose batches come from outside the program: from files, or from a sampler.

    batch <- stream;  columns <- prepare(batch);  state <- update(columns)

Everything that a run needs to go on exactly where it was is in its checkpoints: parameters, the
optimizer, keys, and the place in the data. Frozen models are not, they are made anew. A finished
run leaves its model as a Hugging Face folder in `model/`, with which other runs can begin.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jrl import metrics
from jrl.checkpoint import Checkpointer
from jrl.lm.policy import Frozen
from jrl.lm.rewards.scorer import RewardsFailedError
from jrl.progress import Progress, stopping, wait
from jrl.run_directory import Recorder, RunDirectory, UsageError, difference, plain, versions
from jrl.streams.contract import Start, Task
from jrl.types import Metrics, Params, PyTree, Updater

__all__ = ["StreamExperiment"]

IN_FLIGHT = 2
"""Updates that may be on their way to the device before the host waits for the oldest."""

UNCOMPARED = ("keep", "tensorboard", "wandb", "show")
"""Fields that may differ between a run and its continuation."""


@dataclasses.dataclass(frozen=True)
class StreamExperiment:
    """One run: `config.updates` batches, measured now and then on held-out data."""

    name: str
    """Name of the default directory below runs/."""
    task: Task
    """The model, the data, the rewards."""
    config: Any
    """Sizes of the algorithm, compiled in."""
    hyper: Any
    """Numbers of the algorithm."""
    seed: int = 0
    """Of parameters, order of the data and samples."""
    log_every: int = 10
    """Updates that make one row of metrics."""
    evaluate_every: int = 100
    """Updates between two evaluations."""
    checkpoint_every: int = 100
    """Updates between two checkpoints: what a kill can cost."""
    keep: int = 2
    """Checkpoints kept."""
    show: int = 2
    """Samples printed at every evaluation."""
    tensorboard: bool = True
    """Write event files."""
    wandb: str | None = None
    """Project on Weights & Biases to log to."""
    metric: tyro.conf.Suppress[str] = "eval/loss"
    """What the summary calls the result."""

    def validate(self) -> None:
        """Raises ValueError with one line that names the field and the fix."""
        for name in ("log_every", "evaluate_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be between 0 and 2^32, got {self.seed}")
        self.config.validate()
        self.task.validate(self.config, self.hyper)

    def run(
        self,
        directory: str | pathlib.Path,
        resume: bool = False,
        quiet: bool = False,
        command: str | None = None,
    ) -> dict[str, Any]:
        """Trains, or goes on from the last checkpoint, and returns the summary.

        The first SIGTERM or SIGINT lets the update in progress end, saves and returns a summary
        whose "finished" is False; the second raises KeyboardInterrupt. Raises UsageError if
        `directory` holds a run and `resume` is not set, or one with other options if it is.
        """
        self.validate()
        run = _open(self, directory, resume)
        command = command or f"jrl resume {run.path}"
        if run.summary_file.exists():
            return run.summary()
        with (
            run.lock(),
            Progress(self.config.updates, 1, quiet) as progress,
            stopping(command) as stop,
        ):
            with _one_line():
                start = self.task.start(self.config, self.hyper, self.seed)
            with (
                contextlib.closing(start.stream),
                Checkpointer(run.checkpoints, self.keep) as checkpointer,
            ):
                session = _Session(self, start, run, checkpointer, progress)
                # The parameters that training began with are not kept beside those it goes on with.
                del start
                try:
                    while session.done < self.config.updates and not stop.is_set():
                        wait(session.advance, stop, progress)
                except (UsageError, RewardsFailedError):
                    # What was learned is not lost because of one example, or of a reward.
                    session.close()
                    raise
                session.close()
            if session.done < self.config.updates:
                return {"finished": False, "update": session.done, "resume": command}
            run.write_summary(session.summary())
        return run.summary()


class _Session:
    """A run between two starts of the program."""

    def __init__(self, experiment, start: Start, run, checkpointer, progress):
        self.experiment, self.stream, self.export = experiment, start.stream, start.save
        self.run, self.checkpointer, self.progress = run, checkpointer, progress
        self.samples = run.path / "samples.jsonl"
        self.program, self.frozen = _program(start.updater), start.frozen
        key = jax.random.key(experiment.seed)
        self.state = _initial(start, experiment.hyper)(key, start.params, start.frozen)
        self.fingerprint = _fingerprint(start.frozen)
        self.done, self.seconds, self.saved = 0, 0.0, 0
        self.last: dict[str, float] = {}
        self.window: list[Metrics] = []
        self._restore()
        self.pending: collections.deque[Any] = collections.deque()
        self.recorder = Recorder(run, experiment.tensorboard, experiment.wandb)

    def advance(self) -> None:
        """One update, and whatever is due after it."""
        began, e = time.perf_counter(), self.experiment
        if self.done == 0:
            self._evaluate()
        place = self.stream.state()
        try:
            with _one_line():
                drawn = self.stream.draw(self._policy, self.done)
        except BaseException:
            self.stream.restore(place)
            raise
        columns, measured = self.program.prepare(self.state, self.frozen, drawn.batch, e.hyper)
        self.state, sums = self.program.update(self.state, self.frozen, columns, e.hyper)
        self._note(drawn.notes)
        self.window.append({**drawn.metrics, **measured, **sums})
        self.pending.append(sums)
        if len(self.pending) > IN_FLIGHT:
            jax.block_until_ready(self.pending.popleft())
        self.done += 1
        last = self.done == e.config.updates
        if self.done % e.log_every == 0 or last:
            self._log(drawn.samples)
        if self.done % e.evaluate_every == 0 or last:
            self._evaluate()
        self.seconds += time.perf_counter() - began
        if self.done % e.checkpoint_every == 0 or last:
            self._save()

    def close(self) -> None:
        """Saves what was not; waits until everything is on disk."""
        if self.done > self.saved:
            self._save()
        self.checkpointer.wait()
        self.recorder.close()
        if self.done == self.experiment.config.updates:
            self.export(self._policy(), self.run.path / "model")

    def summary(self) -> dict[str, Any]:
        """What goes on record of a finished run."""
        device = jax.devices()[0]
        finals = {name: x for name, x in self.last.items() if name.startswith("eval/")}
        return {
            "finished": True,
            "name": self.experiment.name,
            "result": finals.get(self.experiment.metric),
            "final": finals,
            "updates": self.done,
            "seconds": self.seconds,
            "updates_per_second": self.done / self.seconds,
            "device": f"{device.platform}: {device.device_kind}",
            "versions": versions(),
            "git_commit": self.run.config.get("git_commit"),
        }

    def _policy(self) -> Params:
        return self.program.policy(self.state, self.frozen)

    def _log(self, samples: Iterable[dict[str, Any]]) -> None:
        self._row(metrics.mean(self._sums()))
        self.window.clear()
        self._show(samples, "train", 0)
        self.progress.part(self.done, self.last, {"seconds": self.seconds, "compile_seconds": 0.0})

    def _evaluate(self) -> None:
        with _one_line():
            held = self.stream.evaluate(self._policy)
        self._note(held.notes)
        found = [
            self.program.evaluate(self.state, self.frozen, batch, self.experiment.hyper)
            for batch in held.batches
        ]
        means = metrics.mean(metrics.join(jax.device_get([held.metrics, *found])))
        self._row({f"eval/{name}": x for name, x in means.items()})
        self._show(held.samples, "eval", self.experiment.show)

    def _note(self, notes: Iterable[str]) -> None:
        for note in notes:
            self.progress.say(note)

    def _sums(self) -> Metrics:
        """Adds up what was measured since the last row, in the order of the updates."""
        fetched = jax.device_get(self.window)
        floats = [{n: (float(x), float(w)) for n, (x, w) in sums.items()} for sums in fetched]
        return metrics.join(floats)

    def _row(self, means: dict[str, Any]) -> None:
        values = {name: float(x) for name, x in means.items()}
        self.last |= values
        kept = {name: x if np.isfinite(x) else None for name, x in sorted(values.items())}
        row = {"step": self.done, "setting": "run", "seed": self.experiment.seed, "means": kept}
        self.recorder.write([row])

    def _show(self, samples, kind: str, count: int) -> None:
        samples = list(samples)
        with open(self.samples, "a") as file:
            for sample in samples:
                file.write(json.dumps({"step": self.done, "kind": kind, **plain(sample)}) + "\n")
        for sample in samples[:count]:
            self.progress.say("  ".join(f"{name}: {x!r}" for name, x in sample.items()))

    def _save(self) -> None:
        items = {"params": self.state.params, "state": self.state.replace(params=None)}
        meta = {
            "update": self.done,
            "seconds": self.seconds,
            "stream": self.stream.state(),
            "frozen": self.fingerprint,
            "last": plain(self.last),
            "window": self._sums(),
        }
        self.checkpointer.save(self.done, items, meta)
        self.saved = self.done

    def _restore(self) -> None:
        if not self.checkpointer.steps():
            self._forget(-1)
            return
        target = {"params": self.state.params, "state": self.state.replace(params=None)}
        step, items, meta = self.checkpointer.restore(target)
        if meta["frozen"] != self.fingerprint:
            raise UsageError(
                f"the frozen models are not those that {self.run.path} was started with: "
                "restore their files, or start another directory"
            )
        self.checkpointer.discard_after(step)
        self._forget(step)
        self.state = items["state"].replace(params=items["params"])
        self.stream.restore(meta["stream"])
        self.done = self.saved = step
        self.seconds, self.last = meta["seconds"], meta["last"]
        self.window = [{n: tuple(x) for n, x in meta["window"].items()}] if meta["window"] else []
        self.progress.say(f"going on from update {step:,}")

    def _forget(self, step: int) -> None:
        """Removes what was written after `step`: the run goes on from there and writes it again."""
        self.run.truncate(step)
        if self.samples.exists():
            lines = self.samples.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            self.samples.write_text("".join(x for x in whole if json.loads(x)["step"] <= step))


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turns what is wrong with an option or an example into an error without a traceback."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error).splitlines()[0]) from error


def _open(experiment, directory, resume: bool) -> RunDirectory:
    values = plain(experiment)
    if not (pathlib.Path(directory) / "config.json").exists():
        return RunDirectory.create(directory, values)
    run = RunDirectory(directory)
    if run.started and not resume:
        raise UsageError(f"{run.path} exists: resume it or choose another directory")
    known, now = (
        {name: x for name, x in v.items() if name not in UNCOMPARED}
        for v in (run.config["values"], values)
    )
    if found := difference(known, now):
        name, old, new = found
        raise UsageError(
            f"{name} is {old} in {run.path} and now {new}: "
            "go on with the same options, or start another directory"
        )
    return run


def _initial(start: Start, hyper: Any) -> Callable[..., PyTree]:
    """Compiles `init`, so that frozen models, which it gives back, are not copied."""

    def init(key, params, frozen):
        return _thaw(start.updater.init(key, params, frozen, hyper))

    return jax.jit(init)


class _Program(NamedTuple):
    """An updater's functions with the frozen models as an argument of their own.

    Their states have none: an update gives its state's buffers to the next one, and frozen models
    are needed again, by whoever else uses them too.
    """

    prepare: Callable[..., tuple[PyTree, Metrics]]
    update: Callable[..., tuple[PyTree, Metrics]]
    evaluate: Callable[..., Metrics]
    policy: Callable[..., Params]


def _program(updater: Updater) -> _Program:
    def update(state, frozen, columns, hp):
        state, sums = updater.update(_freeze(state, frozen), columns, hp)
        return _thaw(state), sums

    def prepare(state, frozen, batch, hp):
        return updater.prepare(_freeze(state, frozen), batch, hp)

    def evaluate(state, frozen, batch, hp):
        return updater.evaluate(_freeze(state, frozen), batch, hp)

    def policy(state, frozen):
        return updater.policy(_freeze(state, frozen))

    # The last is not compiled: what is trained as it is would be copied.
    return _Program(jax.jit(prepare), jax.jit(update, donate_argnums=0), jax.jit(evaluate), policy)


def _is_frozen(x) -> bool:
    return isinstance(x, Frozen)


def _thaw(tree: PyTree) -> PyTree:
    """Takes frozen models out of a state: they need not be saved every time."""
    return jax.tree.map(lambda x: Frozen() if _is_frozen(x) else x, tree, is_leaf=_is_frozen)


def _freeze(tree: PyTree, frozen: Frozen) -> PyTree:
    """Puts them in again."""
    return jax.tree.map(lambda x: frozen if _is_frozen(x) else x, tree, is_leaf=_is_frozen)


def _fingerprint(frozen: Frozen) -> str:
    """Tells whether frozen models are still the same."""
    digest = hashlib.blake2b(digest_size=16)
    for path, x in jax.tree_util.tree_flatten_with_path(frozen)[0]:
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(jnp.asarray(x)).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
