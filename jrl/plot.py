"""Learning curves: the interquartile mean over seeds with stratified bootstrap intervals.

Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice", https://arxiv.org/abs/2108.13264, section 4: the mean of the middle half of all
runs, and percentiles of it over resamples that draw runs with replacement within each task.
"""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Sequence

import numpy as np
import tyro

from jrl.run_directory import RunDirectory, UsageError

__all__ = ["Options", "available", "bootstrap_interval", "curves", "iqm", "read_curves"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Draws learning curves: interquartile means with 95 % bootstrap intervals."""

    runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Directories of runs."""
    metric: str | None = None
    """What to draw; None for the first run's own metric, or eval/return if it names none."""
    against: str | None = None
    """Over which other metric; None for the steps."""
    output: pathlib.Path | None = None
    """The PNG; None for one in the first run's directory."""


Numbers = np.ndarray | np.floating

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito's, which colour-blind readers can tell apart."""


def available() -> bool:
    """Says whether matplotlib is installed; does not import it."""
    return importlib.util.find_spec("matplotlib") is not None


def iqm(scores, axis: int = 0) -> Numbers:
    """Returns the mean of what remains without the lowest and the highest quarter.

    >>> float(iqm([0.0, 1.0, 2.0, 100.0]))
    1.5
    """
    scores = np.sort(np.moveaxis(np.asarray(scores, float), axis, 0), 0)
    cut = len(scores) // 4
    return scores[cut : len(scores) - cut].mean(0)


def bootstrap_interval(
    scores, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[Numbers, Numbers]:
    """Returns the bounds of the IQM of `scores[runs, tasks, ...]`, trailing axes one by one.

    Every resample draws as many runs as there are, with replacement, for each task anew; the
    bounds are percentiles. The same `seed` gives the same bounds.
    """
    scores = np.asarray(scores, float)
    runs, tasks = scores.shape[:2]
    rng = np.random.default_rng(seed)
    estimates = []
    for _ in range(resamples):
        drawn = rng.integers(runs, size=(runs, tasks))
        sample = scores[drawn, np.arange(tasks)]
        estimates.append(iqm(sample.reshape(runs * tasks, *scores.shape[2:])))
    tail = (1 - level) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail], axis=0)
    return low, high


def read_curves(run: RunDirectory, metric: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns setting -> (steps[points], scores[seeds, points]); NaN for what is not finite.

    Raises UsageError if the run has no such metric.
    """
    table: dict[str, dict[int, dict[int, float]]] = {}
    names: set[str] = set()
    for row in run.rows():
        names |= row["means"].keys()
        points = table.setdefault(row["setting"], {}).setdefault(row["seed"], {})
        if metric in row["means"]:
            value = row["means"][metric]
            points[row["step"]] = np.nan if value is None else value
    if not names:
        raise UsageError(f"{run.path} has no measurements to plot")
    if metric not in names:
        raise UsageError(f"metric: {run.path} has no {metric!r}, only {', '.join(sorted(names))}")
    curves = {}
    for setting, seeds in table.items():
        # A run cut short may have more points of one seed than of another.
        steps = sorted(set.intersection(*(set(points) for points in seeds.values())))
        scores = [[points[step] for step in steps] for points in seeds.values()]
        curves[setting] = (np.array(steps), np.array(scores))
    return curves


def curves(
    runs: Sequence[str | pathlib.Path],
    metric: str | None = None,
    output: str | pathlib.Path | None = None,
    resamples: int = 2000,
    against: str | None = None,
) -> pathlib.Path:
    """Draws one curve for every setting of every run and returns the PNG's path.

    Without `metric` it is what the first run's experiment calls its own, or "eval/return". Over
    steps, or over the mean of another metric: `against`, in the order of the steps. Without
    `output` it goes to the first run's directory. Raises UsageError for a directory that is no
    run, a metric that was not measured, and a missing matplotlib.
    """
    if not available():
        raise UsageError("matplotlib is missing, run `pip install 'jrl[plots]'`")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    opened = [RunDirectory(run) for run in runs]
    metric = metric or str(opened[0].config["values"].get("metric", "eval/return"))
    lines = []
    for run in opened:
        other = read_curves(run, against) if against else {}
        for setting, curve in read_curves(run, metric).items():
            where = run.path.resolve().name
            label = setting if len(runs) == 1 else f"{where}: {setting}"
            curve = _joined(*curve, *other[setting]) if against else curve
            lines.append((where if label.endswith(("default", "run")) else label, *curve))
    figure = Figure(figsize=(8, 5), layout="constrained", dpi=120)
    # Without pyplot no display is looked for and no other figure of the process is touched.
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, (label, steps, scores) in enumerate(lines):
        seeds = len(scores)
        colour, style = COLOURS[i % len(COLOURS)], ("-", "--", ":")[i // len(COLOURS) % 3]
        text = f"{label} ({seeds} seed{'s' * (seeds > 1)})"
        mark = "." if len(steps) <= 60 else ""
        axes.plot(steps, iqm(scores), style, marker=mark, color=colour, label=text)
        if seeds > 1:
            low, high = bootstrap_interval(scores[:, None], resamples)
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_xlabel(against or "steps of each member")
    axes.set_ylabel(f"{metric} (interquartile mean over seeds)")
    axes.set_title("bands: 95 % stratified bootstrap intervals", fontsize="small", loc="right")
    if not against:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small", ncols=1 + len(lines) // 8)
    name = (f"{metric}_against_{against}" if against else metric).replace("/", "_")
    path = pathlib.Path(output or opened[0].path / f"{name}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def _joined(steps, scores, other_steps, other_scores) -> tuple[np.ndarray, np.ndarray]:
    """Returns (mean of the other scores, scores) at the steps that both have."""
    _, ours, theirs = np.intersect1d(steps, other_steps, return_indices=True)
    return other_scores[:, theirs].mean(0), scores[:, ours]
