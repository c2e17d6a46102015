"""Rewards in parallel processes, each call with a time limit.

A call that hangs, raises or ends its process costs its own sample: it has no reward (NaN, and
false in `valid`) and the worker is replaced. Workers are new programs, never forks of a process
that has jax's threads; they import the standard library and what the functions need.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import pickle
import queue
import signal
import socket
import subprocess
import sys
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial
from importlib.machinery import PathFinder
from typing import Any, NamedTuple

import numpy as np

from jrl.lm.rewards.functions import Reward, Weighted, name_of, select_columns

__all__ = ["Failure", "RewardsFailedError", "Scorer", "Scores"]

WORKER = pathlib.Path(__file__).with_name("_worker.py")
INSIDE = "JRL_REWARD_WORKER"
"""An environment variable that only workers have."""

KINDS = ("timeout", "exception", "crash")

START = 60.0
"""Seconds in which a worker must have imported the functions."""

GRACE = 5.0
"""Seconds beyond the limit after which a worker is killed that did not end by itself."""


class RewardsFailedError(RuntimeError):
    """Too many calls of a reward function failed; the message has the first one's traceback."""


class Failure(NamedTuple):
    """A call that gave no reward: `kind` is `timeout`, `exception` or `crash`."""

    sample: int
    function: str
    kind: str
    traceback: str


class Scores(NamedTuple):
    """Rewards of a batch in the order of its samples; NumPy arrays.

    Where `valid` is false some function failed: the reward is NaN and must not enter a mean, so
    `valid` is the mask of group advantages.
    """

    rewards: np.ndarray
    """[B] float32, the weighted sum."""
    valid: np.ndarray
    """[B] bool."""
    values: dict[str, np.ndarray]
    """Name of a function -> [B] float32, not weighted."""
    failures: list[Failure]
    metrics: dict[str, tuple[float, float]]
    """Name -> (sum, weight): `reward`, `reward/NAME`, `reward_failed/NAME`, `reward_timeout`,
    `reward_exception`, `reward_crash`."""


class Scorer:
    """Calls reward functions in worker processes that are reused from batch to batch.

    Args:
        reward: a function that a worker can import (no lambda), a `functools.partial` of one, or
            `weighted({function: weight, ...})`, whose functions are called and counted one by one.
        workers: number of processes, one for each core if it is None.
        timeout: seconds that one call of one function may take.
        max_failed: share of failed calls beyond which the run is stopped.
        window: number of a function's latest calls that the share is of. Before there are so many,
            missing ones count as good, so that one bad sample in a small batch stops nothing.

    Leave it through `with`, or call `close`; workers also end when it is garbage, when the program
    exits, and when it is killed.

    Raises: ValueError for settings out of range, and functions that cannot be sent.

    >>> from jrl.lm.rewards.functions import number_match
    >>> with Scorer(number_match, workers=1) as scorer:
    ...     scores = scorer(["1 + 1", "2 + 2"], ["2", "five"], answer=[2, 4])
    >>> scores.rewards, scores.metrics["reward"]
    (array([1., 0.], dtype=float32), (1.0, 2.0))
    """

    def __init__(
        self,
        reward: Reward,
        workers: int | None = None,
        timeout: float = 10.0,
        max_failed: float = 0.25,
        window: int = 200,
    ):
        workers = workers or os.cpu_count() or 1
        for name, value, least in (("workers", workers, 1), ("window", window, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not (timeout > 0 and 0 <= max_failed <= 1):
            raise ValueError(
                f"timeout must be positive and max_failed in 0 .. 1, got {timeout}, {max_failed}"
            )
        if INSIDE in os.environ:
            raise RuntimeError(
                "a reward worker starts workers: put what runs in the script that defines the "
                'reward under `if __name__ == "__main__":`'
            )
        weights = reward.weights if isinstance(reward, Weighted) else {reward: 1.0}
        self._functions, self._weights = list(weights), list(weights.values())
        self._names = _unique([name_of(function) for function in self._functions])
        self._max_failed, self._max_failures = max_failed, max_failed * window
        self._recent = [deque(maxlen=window) for _ in self._functions]
        self._first: dict[int, Failure] = {}
        setup = _setup(self._functions, timeout)
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        crew = [_Worker(setup, timeout) for _ in range(workers)]
        for worker in crew:
            self._idle.put(worker)
        # Each thread waits for one worker: the limit is that of a socket.
        self._pool = concurrent.futures.ThreadPoolExecutor(workers)
        self._end = weakref.finalize(self, _end, self._pool, crew)

    def __enter__(self) -> "Scorer":
        """Returns itself; the block's end ends the workers."""
        return self

    def __exit__(self, *_) -> None:
        """Closes."""
        self.close()

    def close(self) -> None:
        """Ends the workers and whatever they started; calls after it fail."""
        self._end()

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> Scores:
        """Scores a batch.

        Args: `prompts` and `completions`, text or what else the functions take; `columns`, a
        sequence or array of one value per sample each, for the functions that ask for it by name.
        Raises: ValueError for columns that are missing or of another length; RuntimeError, with
        the function's name and its first traceback, if too many calls failed, or if a worker
        cannot import the functions.
        """
        calls = self._calls(prompts, completions, columns)
        values = np.full((len(self._functions), len(prompts)), np.nan, np.float32)
        failures = []
        futures = [self._pool.submit(self._run, call) for _, _, call in calls]
        try:
            for (sample, which, _), future in zip(calls, futures, strict=True):
                value, kind, text = future.result()
                failed = kind is not None
                if failed:
                    failures.append(Failure(sample, self._names[which], kind, text))
                else:
                    values[which, sample] = value
                self._recent[which].append(failed)
                if failed:
                    self._watch(which, failures[-1])
        finally:
            for future in futures:
                future.cancel()
        return self._scores(values, failures)

    def _calls(self, prompts, completions, columns):
        """Returns (sample, number of the function, message to a worker) of every call."""
        for name, column in {"completions": completions, **columns}.items():
            if len(column) != len(prompts):
                raise ValueError(f"{name}: {len(column)} values for {len(prompts)} prompts")
        # Workers have no jax to read its arrays with.
        columns = {name: x.tolist() if hasattr(x, "tolist") else x for name, x in columns.items()}
        wanted = [select_columns(function, columns) for function in self._functions]
        calls = []
        for sample, texts in enumerate(zip(prompts, completions, strict=True)):
            for which, chosen in enumerate(wanted):
                row = {name: column[sample] for name, column in chosen.items()}
                calls.append((sample, which, pickle.dumps((which, texts, row))))
        return calls

    def _run(self, call):
        worker = self._idle.get()
        try:
            return worker.call(call)
        finally:
            self._idle.put(worker)

    def _watch(self, which, failure):
        """Raises if the function failed too often of late."""
        first = self._first.setdefault(which, failure)
        failed, calls = sum(self._recent[which]), len(self._recent[which])
        if failed > self._max_failures:
            raise RewardsFailedError(
                f"reward {failure.function!r} failed in {failed} of its last {calls} calls, more "
                f"than max_failed={self._max_failed} of {self._recent[which].maxlen}; "
                f"the first ({first.kind}):\n{first.traceback}"
            )

    def _scores(self, values, failures):
        valid = np.isfinite(values).all(0)
        # Not `weights @ values`, which would be another sum on another machine.
        rewards = sum(w * v for w, v in zip(self._weights, values, strict=True))
        rewards = np.where(valid, rewards, np.nan).astype(np.float32)
        metrics = {"reward": (float(rewards[valid].sum()), float(valid.sum()))}
        for name, column in zip(self._names, values, strict=True):
            good = np.isfinite(column)
            metrics[f"reward/{name}"] = (float(column[good].sum()), float(good.sum()))
            metrics[f"reward_failed/{name}"] = (float((~good).sum()), float(good.size))
        kinds = Counter(failure.kind for failure in failures)
        for kind in KINDS:
            metrics[f"reward_{kind}"] = (float(kinds[kind]), float(values.size))
        columns = dict(zip(self._names, values, strict=True))
        return Scores(rewards, valid, columns, failures, metrics)


class _Worker:
    """One process, started when it is needed, and again when it ended."""

    def __init__(self, setup: bytes, timeout: float):
        self._setup, self._timeout = setup, timeout
        self._process: subprocess.Popen | None = None

    def call(self, call: bytes) -> tuple[float | None, str | None, str]:
        """Returns (value, None, "") or (None, kind of failure, traceback)."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        reply, words, timed_out = self._ask(call, self._timeout + GRACE)
        if reply is not None:
            value, text = reply
            return (value, None, "") if text is None else (None, "exception", text)
        status = self.end()
        if timed_out or words.startswith("Timeout"):
            return None, "timeout", f"no reward within {self._timeout:g} seconds\n{words}"
        return None, "crash", f"its process ended with status {status}\n{words}"

    def kill(self) -> None:
        """Kills the process and what it started, in the same session; from any thread."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

    def end(self) -> int | None:
        """Kills the process, closes its channel and returns its status."""
        if self._process is None:
            return None
        self.kill()
        # It waits, and closes the end that the worker's life hangs on.
        self._process.communicate()
        status = self._process.returncode
        self._replies.close()
        self._socket.close()
        self._process = None
        return status

    def _start(self) -> None:
        self.end()
        ours, theirs = socket.socketpair()
        with theirs:
            # Not the parent's devices, and the same order of sets in every worker.
            env = {**os.environ, INSIDE: "1", "JAX_PLATFORMS": "cpu", "PYTHONHASHSEED": "0"}
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(WORKER), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.PIPE,
                start_new_session=True,
                env=env,
            )
        self._socket, self._replies = ours, ours.makefile("rb")
        reply, words, _ = self._ask(self._setup, START)
        problem = words if reply is None else reply[1]
        if problem is not None:
            self.end()
            raise RuntimeError(f"a worker cannot import the reward functions:\n{problem}")

    def _ask(self, message: bytes, limit: float) -> tuple[list | None, str, bool]:
        """Returns (reply, last words if there is none, whether time ran out)."""
        words = b""
        self._socket.settimeout(limit)
        try:
            self._socket.sendall(message)
            for line in self._replies:
                if line.startswith(b"["):
                    return json.loads(line), "", False
                words += line
        except TimeoutError:
            return None, words.decode(errors="replace"), True
        except OSError:
            # The process ended, and what it did not read is lost.
            pass
        return None, words.decode(errors="replace"), False


def _end(pool: concurrent.futures.ThreadPoolExecutor, crew: list[_Worker]) -> None:
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in crew:
        worker.kill()
    pool.shutdown(wait=True)
    for worker in crew:
        worker.end()


def _setup(functions: list[Reward], timeout: float) -> bytes:
    """Returns what a new worker reads first: where to find modules, then the functions."""
    try:
        pickled = pickle.dumps(functions)
    except Exception as error:
        raise ValueError(
            f"reward: {error}; a worker must import it, define it at the top of a module"
        ) from error
    paths = [os.path.abspath(path) for path in sys.path]
    return pickle.dumps((paths, sys.argv, _scripts(functions), timeout)) + pickled


def _scripts(functions: list[Reward]) -> dict[str, str | None]:
    """Maps the modules of functions that no import finds to the files that they came from."""
    names = {getattr(f.func if isinstance(f, partial) else f, "__module__", "") for f in functions}
    names = {n for n in names if n and "." not in n and PathFinder.find_spec(n) is None}
    files = {n: getattr(sys.modules.get(n), "__file__", None) for n in names | {"__main__"}}
    return {n: None if file is None else os.path.abspath(file) for n, file in files.items()}


def _unique(names: list[str]) -> list[str]:
    """Numbers the second and later functions of one name."""
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return unique
