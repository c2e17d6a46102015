"""What surrounds a running program: what it shows and how it is stopped.

On a terminal progress is a live bar, anywhere else plain lines.
"""

import concurrent.futures
import contextlib
import datetime
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Progress", "stopping", "wait"]

FIRST = ("eval/return", "eval/reward", "episode_return", "reward", "loss")
"""Metrics shown first; of the others there is room for as many as make three."""


SETTINGS = 16
"""Settings whose scores stand on one line."""


class Progress:
    """Shows steps done, steps per second of the whole population, time left and main metrics.

    `live` says whether there is a bar that wants `point` while a program runs; `part` comes
    between programs. Nothing at all is shown if `quiet`.
    """

    def __init__(self, steps: int, members: int, quiet: bool = False):
        self.steps, self.members, self.quiet = steps, members, quiet
        self.live = not quiet and sys.stdout.isatty()
        self._bar: Any = None
        self._shown = 3
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> "Progress":
        """Opens the bar."""
        if self.live:
            from rich import progress

            self._bar = progress.Progress(
                progress.TimeElapsedColumn(),
                progress.BarColumn(bar_width=12),
                progress.TaskProgressColumn(),
                progress.TextColumn("{task.fields[text]}"),
            )
            # What does not fit on the line would push the numbers out of their columns.
            self._shown = 3 if self._bar.console.width >= 110 else 1
            self._bar.start()
            self._task = self._bar.add_task("", total=self.steps, text="compiling")
        return self

    def __exit__(self, *_) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self.quiet:
            return
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def point(self, steps: int) -> Callable[[int, dict[str, float]], None]:
        """Returns what moves the bar to a point, `steps` from one to the next.

        It is called from a thread of jax's while the program runs.
        """

        def report(point: int, means: dict[str, float]) -> None:
            now, step = time.perf_counter(), point * steps
            if self._first is None:
                self._first = now, step
            began, from_step = self._first
            rate = (step - from_step) / (now - began) if step > from_step else None
            self._bar.update(self._task, completed=step, text=self._text(step, means, rate))

        return report

    def part(
        self,
        step: int,
        means: dict[str, float],
        spent: dict[str, float],
        scores: dict[str, float] | None = None,
    ) -> None:
        """Shows where the run is after one of its programs, and the score of every setting."""
        seconds = spent["seconds"] - spent["compile_seconds"]
        rate = step / seconds if seconds > 0 else None
        text = self._text(step, means, rate)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        else:
            self.say(f"step {step:,}/{self.steps:,}  {text}")
        if scores and len(scores) > 1:
            parts = [f"{name} {score:.4g}" for name, score in scores.items()]
            for first in range(0, len(parts), SETTINGS):
                self.say("  " + "  ".join(parts[first : first + SETTINGS]))

    def _text(self, step: int, means: dict[str, float], rate: float | None) -> str:
        names = [name for name in FIRST if name in means]
        names += [name for name in means if name not in names]
        parts = [f"{name} {means[name]:.4g}" for name in names[: self._shown]]
        if rate:
            left = datetime.timedelta(seconds=round((self.steps - step) / rate))
            rate *= self.members
            speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
            parts = [f"{speed} steps/s", f"{left} left", *parts]
        return "  ".join(parts)


@contextlib.contextmanager
def stopping(resume: str) -> Iterator[threading.Event]:
    """Turns the first SIGTERM or SIGINT into a flag; the second raises KeyboardInterrupt.

    `resume` is the command that goes on with what was stopped.
    """
    event = threading.Event()

    def stop(number, frame):
        if event.is_set():
            raise KeyboardInterrupt(f"stopped at once: go on with `{resume}`")
        event.set()

    before = {}
    # Python delivers signals to the main thread, and only there may handlers be set.
    if threading.current_thread() is threading.main_thread():
        before = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait(task: Callable[[], Any], stop: threading.Event, progress: Progress) -> Any:
    """Returns what `task` returns; a signal is handled while it runs, and announced.

    jax compiles and, on a CPU, runs what calls back without letting Python handle signals, so
    the task gets a thread of its own.
    """
    pool, told = concurrent.futures.ThreadPoolExecutor(1), False
    future = pool.submit(task)
    pool.shutdown(wait=False)
    while concurrent.futures.wait([future], timeout=0.02).not_done:
        if stop.is_set() and not told:
            # Not in the handler: that may interrupt another print and would break it.
            progress.say("stopping after this part; again to stop now")
            told = True
    return future.result()
