"""How are the other benchmarks measured, and how are their numbers kept?

The machine may be shared, so a figure alone says little: rows that are compared run in turn
(A B A B ...) within one process, and medians of the repeats are compared. Every result carries
its repeats, the load average before and after, and the share of the cores that other processes
used meanwhile (`foreign`).
"""

import dataclasses
import datetime
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

__all__ = [
    "Options",
    "compiled",
    "human",
    "in_turn",
    "load",
    "machine",
    "optional",
    "quiet_share",
    "save",
    "show",
    "summary",
]

RESULTS = pathlib.Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "gymnax", "gymnasium", "rejax")


@dataclasses.dataclass
class Options:
    """What every benchmark takes on the command line."""

    repeats: int = 5
    """Timed runs of every row; the median is compared."""
    quick: bool = False
    """Small sizes, to see that everything runs."""
    save: bool = True
    """Write the JSON below benchmarks/results."""


def in_turn(rows: dict[str, Callable[[], Any]], repeats: int, least: float = 0.0) -> dict:
    """Times callables in turn; returns name -> list of seconds for one call.

    Each call is waited for. Everything runs once before the clock starts. A callable that takes
    less than `least` seconds is repeated within one measurement until that time is filled.
    """
    loops = {}
    for name, call in rows.items():
        jax.block_until_ready(call())
        began = time.perf_counter()
        jax.block_until_ready(call())
        loops[name] = max(1, round(least / max(time.perf_counter() - began, 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(repeats):
        for name, call in rows.items():
            began = time.perf_counter()
            for _ in range(loops[name]):
                jax.block_until_ready(call())
            seconds[name].append((time.perf_counter() - began) / loops[name])
    return seconds


def compiled(function: Callable, *args) -> tuple[Callable, float]:
    """Compiles a jitted function for its arguments; returns it and the seconds that took."""
    began = time.perf_counter()
    program = function.lower(*args).compile()
    return program, time.perf_counter() - began


def summary(values: list[float]) -> dict[str, Any]:
    """Median, smallest, largest and all."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "all": values,
    }


def optional(name: str, install: str) -> Any:
    """Imports a peer; prints what to install and returns None where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed, its rows are left out: pip install '{install}'")
        return None


def machine() -> dict[str, Any]:
    """Describes where this runs, without the names of hosts."""
    model = platform.processor()
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        model = next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        pass
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load_average": list(os.getloadavg()),
    }


class quiet_share:  # noqa: N801
    """Measures the share of all cores that other processes used: `with quiet_share() as s`."""

    def __enter__(self):
        """Starts the clocks."""
        self.before = self._clocks()
        return self

    def __exit__(self, *_):
        """Reads them again; the result is `foreign`, NaN where /proc does not exist."""
        busy, total, own = (b - a for a, b in zip(self.before, self._clocks(), strict=True))
        self.foreign = round((busy - own) / total, 2) if total else float("nan")

    def _clocks(self):
        try:
            words = pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        except OSError:
            return 0.0, 0.0, 0.0
        ticks = [int(x) for x in words[:8]]
        idle, total = ticks[3] + ticks[4], sum(ticks)
        times = os.times()
        # Processes that this one started count as its own once they have been waited for.
        own = times.user + times.system + times.children_user + times.children_system
        own *= os.sysconf("SC_CLK_TCK")
        return float(total - idle), float(total), own


def show(title: str, header: list[str], rows: list[list[Any]]) -> None:
    """Prints a table."""
    table = Table(*header, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console(width=max(100, Console().width)).print(table)


def save(name: str, content: dict[str, Any], options: Options) -> None:
    """Writes benchmarks/results/<name>.json, unless this was a quick look."""
    if not options.save or options.quick:
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **content}, indent=1) + "\n")
    print(f"wrote benchmarks/results/{path.name}")


def load(name: str, key: str, options: Options) -> list:
    """Reads what earlier runs saved, so that a run of some rows replaces only those."""
    path = RESULTS / f"{name}.json"
    if not options.save or options.quick or not path.exists():
        return []
    return json.loads(path.read_text()).get(key, [])


def human(number: float) -> str:
    """Shortens a rate: 1234567 becomes 1.23 M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g}"
