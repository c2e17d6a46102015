"""Pictures: a bar for every setting, learning curves, and what every detail of the method does."""

import importlib.util
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ppo_clipping.results import FAMILIES, PAPER, Results, family

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["available", "curves", "details", "left_out", "png", "scores"]

PAPER_COLOUR, OUR_COLOUR = "#B8B8B8", "#0072B2"

SHADES = {
    "none": ("#000000",),
    "clip": ("#9ECAE1", "#0072B2", "#08306B"),
    "akl": ("#FDBE85", "#D55E00", "#7F2704"),
    "kl": ("#A1D99B", "#41AB5D", "#006D2C", "#00341B"),
}
"""One hue for each family of settings, from Okabe & Ito's; darker for a greater number."""


def available() -> bool:
    """Says whether matplotlib is installed; does not import it."""
    return importlib.util.find_spec("matplotlib") is not None


def left_out() -> dict[str, str]:
    """Says in a summary that there are no figures, and why; nothing where there are."""
    return {} if available() else {"figures": "left out, pip install 'jrl[plots]' for them"}


def png(figure: "Figure") -> bytes:
    """Returns the picture as a PNG file's content, of 256 colours: a third of the size."""
    from PIL import Image

    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    stream = io.BytesIO()
    picture.quantize(256).save(stream, format="png", optimize=True)
    return stream.getvalue()


def scores(summary: dict) -> "Figure":
    """Draws the normalised score of every setting beside the paper's, ours with its interval."""
    figure = _figure((9.5, 4.8))
    axes = figure.add_subplot()
    rows = summary["settings"]
    places = np.arange(len(rows))
    paper = [row["paper"] for row in rows.values()]
    axes.bar(places - 0.2, paper, 0.38, color=PAPER_COLOUR, label="paper")
    ours = np.array([row["ours"] for row in rows.values()], float)
    bars = axes.bar(places + 0.2, np.nan_to_num(ours), 0.38, color=OUR_COLOUR, label="ours")
    for place, bar, row in zip(places + 0.2, bars, rows.values(), strict=True):
        if row["ours"] is None:
            axes.text(place, 0.02, "?", ha="center", va="bottom", color=OUR_COLOUR)
            continue
        low, high = row["interval"] or (row["ours"], row["ours"])
        if row["interval"]:
            axes.plot([place, place], [low, high], color="black", linewidth=1.2)
        text = f"{row['ours']:.2f}"
        up = row["ours"] >= 0
        end = max(high, 0, bar.get_height()) if up else min(low, bar.get_height())
        axes.annotate(
            text,
            (place, end),
            xytext=(0, 3 if up else -3),
            textcoords="offset points",
            ha="center",
            va="bottom" if up else "top",
            fontsize="small",
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(places, [PAPER[name].short for name in rows])
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("normalised score")
    axes.margins(x=0.01, y=0.08)
    _quiet(axes, "y")
    axes.spines["bottom"].set_visible(False)
    axes.legend(frameon=False, ncols=2, loc="lower right")
    caption = "random policy 0, best run 1"
    if any(row["interval"] for row in rows.values()):
        caption += "; lines: 95 % bootstrap intervals"
    figure.suptitle(
        f"{_wrap(summary['coverage'])}\n{caption}", fontsize="small", x=0.99, ha="right"
    )
    return figure


def curves(results: Results, coverage: str) -> "Figure":
    """Draws return against steps: a row for each environment, a column for each family.

    Lines are medians over seeds, bands reach from the lower to the upper quartile. The runs
    without any constraint are in every panel, to compare with.
    """
    families = [f for f in FAMILIES if f != "none" and f in map(family, results.settings)]
    families = families or ["none"]
    rows, columns = len(results.environments), len(families)
    figure = _figure((3.6 * max(columns, 2), 2.1 * rows + 1.8))
    panels = figure.subplots(rows, columns, sharex="row", sharey="row", squeeze=False)
    for i, environment in enumerate(results.environments):
        for panel, which in zip(panels[i], families, strict=True):
            _panel(panel, results, i, which)
        _limits(panels[i, 0], results, i)
        panels[i, 0].set_ylabel(f"{environment}\nreturn")
    for panel, which in zip(panels[0], families, strict=True):
        panel.set_title(FAMILIES[which], fontsize="medium", weight="bold")
    for panel in panels[-1]:
        panel.set_xlabel("environment steps")
    _legend(figure, panels[-1])
    text = "return of the last 100 episodes"
    if len(results.seeds) > 1:
        text += ": median and quartiles over seeds"
    figure.suptitle(f"{_wrap(coverage)}\n{text}", fontsize="small", x=0.99, ha="right")
    return figure


def details(summary: dict, labels: Sequence[str]) -> "Figure":
    """Draws the score of every run of every variant: a panel for each environment.

    In each row a line of marks for each of the settings `labels`: a ring for a seed that collapsed,
    a disc for another, a stroke for the mean.
    """
    variants, environments = summary["variants"], summary["environments"]
    figure = _figure((3.0 + 3.0 * len(environments), 1.6 + 0.38 * len(variants)))
    panels = figure.subplots(1, len(environments), sharey=True, squeeze=False)[0]
    for axes, (environment, random) in zip(panels, environments.items(), strict=True):
        axes.axvline(random, color="0.5", linewidth=1, linestyle=":", label="random policy")
        for row, cells in enumerate(variants.values()):
            if row % 2 == 0:
                axes.axhspan(row - 0.5, row + 0.5, color="0.95", linewidth=0, zorder=0)
            for i, label in enumerate(labels):
                height = row + 0.26 * (i - (len(labels) - 1) / 2)
                _marks(axes, cells.get(environment, {}).get(label), height, _colour(label))
        everything = [x for cells in variants.values() for x in _scores(cells.get(environment))]
        _wide(axes, everything, random)
        axes.set_title(environment, fontsize="medium", weight="bold")
        axes.set_xlabel("return of the last 100 episodes")
        axes.tick_params(axis="y", length=0)
        _quiet(axes, "x")
    panels[0].set_yticks(range(len(variants)), list(variants))
    panels[0].set_ylim(len(variants) - 0.5, -0.5)
    _key(figure, panels[0], labels)
    seeds = len(summary["seeds"])
    text = f"{seeds} seed{'s' * (seeds > 1)}, {summary['steps']:,} steps each"
    figure.suptitle(text, fontsize="small", x=0.99, ha="right")
    return figure


def _marks(axes: "Axes", runs: dict | None, height: float, colour: str) -> None:
    known = [x for x in runs["scores"] if x is not None] if runs else []
    if not runs or not known:
        return
    for score, lost in zip(runs["scores"], runs["collapsed"], strict=True):
        if score is not None:
            face = "none" if lost else colour
            axes.plot(score, height, "o", color=colour, markerfacecolor=face, markersize=4.5)
    axes.plot(np.mean(known), height, "|", color=colour, markersize=9, markeredgewidth=1.8)


def _scores(cells: dict | None) -> list[float]:
    runs = cells.values() if cells else ()
    return [x for run in runs for x in run["scores"] if x is not None]


def _wide(axes: "Axes", values: list[float], random: float) -> None:
    """Shrinks what lies far below the random policy: a collapse may be a hundred times as large."""
    best = max([*values, random])
    if values and random - min(values) > 2 * (best - random):
        axes.set_xscale("symlog", linthresh=max(abs(best), abs(random), 1.0), linscale=2)
    else:
        axes.locator_params(axis="x", nbins=5)
    axes.margins(x=0.04)


def _key(figure: "Figure", panel: "Axes", labels: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [panel.lines[0]]
    for label in labels:
        text = PAPER[label].short.replace("\n", " ")
        handles.append(
            Line2D([], [], marker="o", linestyle="none", color=_colour(label), label=text)
        )
    marks = {"mean": {"marker": "|"}, "collapsed": {"marker": "o", "markerfacecolor": "none"}}
    for label, style in marks.items():
        handles.append(Line2D([], [], linestyle="none", color="0.3", label=label, **style))
    figure.legend(
        handles=handles,
        ncols=len(handles),
        loc="outside lower center",
        frameon=False,
        fontsize="small",
    )


def _figure(size: tuple[float, float]) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=100)
    # Without pyplot no display is looked for and no other figure of the process is touched.
    FigureCanvasAgg(figure)
    return figure


def _panel(axes: "Axes", results: Results, environment: int, which: str) -> None:
    steps = results.curve_steps[environment]
    random = results.random[environment]
    axes.axhline(random, color="0.5", linewidth=1, linestyle=":", label="random policy")
    for index, name in enumerate(results.settings):
        if family(name) not in ("none", which):
            continue
        seen, low, median, high = _quartiles(results.curves[environment][index])
        colour = _colour(name)
        label = PAPER[name].short.replace("\n", " ")
        style = "--" if name == "none" else "-"
        axes.plot(steps[seen], median, style, color=colour, linewidth=1.5, label=label)
        axes.fill_between(steps[seen], low, high, color=colour, alpha=0.18, linewidth=0)
    axes.xaxis.set_major_formatter(_steps)
    axes.locator_params(axis="x", nbins=4)
    _quiet(axes, "both")


def _legend(figure: "Figure", panels: np.ndarray) -> None:
    """Writes one column of names for what all panels share and one for each family."""
    from matplotlib.lines import Line2D

    lines = {line.get_label(): line for panel in panels for line in panel.lines}
    groups: dict[str, list] = {}
    for label, line in lines.items():
        first = label.split()[0]
        groups.setdefault("shared" if first in ("random", "none") else first, []).append(line)
    tall = max(map(len, groups.values()))
    blank = Line2D([], [], linestyle="none", label=" ")
    handles = [line for group in groups.values() for line in group + [blank] * (tall - len(group))]
    figure.legend(
        handles=handles,
        ncols=len(groups),
        loc="outside lower center",
        frameon=False,
        fontsize="small",
    )


def _limits(axes: "Axes", results: Results, environment: int) -> None:
    """Limits the row to what the constrained settings and the random policy reach.

    A diverged run without a constraint may be a hundred times lower than all others: a line
    that leaves the panel, and where it went, tell more than ten flat lines.
    """
    others = [i for i, name in enumerate(results.settings) if name != "none"]
    shown = results.curves[environment][others or [0]]
    shown = np.append(shown[np.isfinite(shown)], results.random[environment])
    low, high = shown.min(), shown.max()
    everything = results.curves[environment]
    lowest = np.min(everything[np.isfinite(everything)], initial=low)
    highest = np.max(everything[np.isfinite(everything)], initial=high)
    room = (highest - low) * 0.05 or 1.0
    if low - lowest <= highest - low:
        low = lowest
    else:
        axes.annotate(
            f"none: down to {lowest:,.0f}",
            (0.02, 0.97),
            xycoords="axes fraction",
            va="top",
            fontsize="x-small",
        )
    axes.set_ylim(low - room, highest + room)


def _quartiles(runs: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns which points have a value in any run, and the quartiles there."""
    seen = ~np.isnan(runs).all(0)
    return seen, *np.nanquantile(runs[:, seen], [0.25, 0.5, 0.75], axis=0)


def _colour(name: str) -> str:
    siblings = [other for other in PAPER if family(other) == family(name)]
    return SHADES[family(name)][siblings.index(name)]


def _quiet(axes: "Axes", grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, alpha=0.3)
    axes.set_axisbelow(True)


def _steps(x: float, _) -> str:
    if x >= 1e6:
        return f"{x / 1e6:g}M"
    return f"{x / 1e3:g}k" if x else "0"


def _wrap(coverage: str) -> str:
    """Breaks the line after the list of environments."""
    return coverage.replace("), ", ")\n", 1).rstrip(".")
