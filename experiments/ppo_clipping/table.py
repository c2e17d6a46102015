"""The table of normalised scores next to the paper's, from whatever results are there.

Source: Schulman et al. 2017, "Proximal Policy Optimization Algorithms",
https://arxiv.org/abs/1707.06347, section 6.1: scores of each environment are shifted and scaled so
that the random policy has 0 and the best run 1, then averaged over all runs of a setting.
"""

import csv
import io
import math
import os
import pathlib

import numpy as np

from ppo_clipping import figures
from ppo_clipping.results import ENVIRONMENTS, PAPER, Results, read

__all__ = [
    "average",
    "bootstrap",
    "counted",
    "normalise",
    "put",
    "spearman",
    "summarise",
    "to_csv",
    "to_latex",
    "to_markdown",
    "write",
]

RESAMPLES = 10_000

BEST_RANK, GAP, CORRELATION = 3, 0.3, 0.5
"""Bars: rank of clip0.2 at most, its lead over no clipping and the correlation with the paper at
least. The paper has 1, 1.21 and 1; three seeds leave neighbouring ranks open."""

PUBLISHED = {
    "HalfCheetah": 1400,
    "Hopper": 1850,
    "InvertedDoublePendulum": 7000,
    "InvertedPendulum": 800,
    "Reacher": -7,
    "Swimmer": 40,
    "Walker2d": 1200,
}
"""What clip0.2 must reach after a million steps: low ends of published scores of PPO, on tasks of
versions 1 to 4.

HalfCheetah: CleanRL 1442.64 (docs/benchmark/ppo_continuous_action.md). Hopper, Walker2d: Spinning
Up, about 1850 and 1230, read off its curves by Tianshou (examples/mujoco/README.md).
InvertedDoublePendulum, InvertedPendulum, Reacher: baselines' ppo2 7102.91, 809.43 and -6.71
(openai/baselines, benchmarks_mujoco1M.htm). Swimmer: Tianshou 66.7 with a deviation of 99.1 over
ten seeds; the bar is less than one standard error below.
"""

PUBLISHED_STEPS = 1_000_000

AT_MOST = ("rank of clip0.2", "settings below none")
"""Bars that small values reach; large ones reach the others."""


def write(results_dir: str | pathlib.Path, output_dir: str | pathlib.Path) -> dict:
    """Reads all results, writes the table and the figures, returns the summary.

    Writes `table.md`, `table.csv`, `table.tex` and, where matplotlib is installed, `scores.png`
    and `curves.png`, each whole or not at all. The summary holds plain values only (None for what
    cannot be computed), so that it can be written as JSON. Raises ValueError for a bad result.
    """
    results = read(results_dir)
    summary = summarise(results)
    files = {
        "table.md": to_markdown(summary).encode(),
        "table.csv": to_csv(summary).encode(),
        "table.tex": to_latex(summary).encode(),
    }
    if figures.available():
        files["scores.png"] = figures.png(figures.scores(summary))
        files["curves.png"] = figures.png(figures.curves(results, summary["coverage"]))
    put(files, pathlib.Path(output_dir))
    scores = {"scores": _in_a_line(summary)}
    return summary | scores | {"files": list(files)} | figures.left_out()


def put(files: dict[str, bytes], output: pathlib.Path) -> None:
    """Writes each file in one rename, and makes the directory if there is none."""
    output.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        temporary = output / f".{name}.new"
        temporary.write_bytes(content)
        os.replace(temporary, output / name)


def counted(scores: np.ndarray) -> np.ndarray:
    """Gives a run without a score the worst of its environment: to diverge is a result too.

    >>> counted(np.array([[[np.nan, 10.0], [20.0, 30.0]]])).tolist()
    [[[10.0, 10.0], [20.0, 30.0]]]
    """
    worst = np.min(np.where(np.isnan(scores), np.inf, scores), axis=(1, 2), keepdims=True)
    return np.where(np.isnan(scores), np.where(np.isinf(worst), np.nan, worst), scores)


def normalise(scores: np.ndarray, random: np.ndarray) -> np.ndarray:
    """Returns `scores[environments, settings, seeds]` with `random` at 0 and the best run at 1.

    An environment where no run beats the random policy has no such scale: NaN.

    >>> normalise(np.array([[[0.0, 10.0], [20.0, 30.0]]]), np.array([10.0])).tolist()
    [[[-0.5, 0.0], [0.5, 1.0]]]
    """
    # Not nanmax: it warns where every run is missing.
    best = np.max(np.where(np.isnan(scores), -np.inf, scores), axis=(1, 2))
    span = np.where(best > random, best - random, np.nan)
    return (scores - random[:, None, None]) / span[:, None, None]


def average(runs: np.ndarray) -> float:
    """Returns the mean over environments of the mean over seeds of `runs[environments, seeds]`.

    With every run there it is the mean of all runs. A missing one (NaN) must not change its
    environment's share; an environment with none left makes the whole NaN.
    """
    there = ~np.isnan(runs)
    if not len(runs) or not there.any(1).all():
        return math.nan
    return float(np.mean(np.where(there, runs, 0).sum(1) / there.sum(1)))


def bootstrap(runs: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """Returns `average` of `resamples` draws of runs with replacement within each environment.

    NaN for a single seed, which could only be drawn again: no interval rather than no width.
    """
    if math.isnan(average(runs)) or runs.shape[1] < 2:
        return np.full(resamples, math.nan)
    there = [row[~np.isnan(row)] for row in runs]
    return np.mean([rng.choice(row, (resamples, len(row))).mean(1) for row in there], axis=0)


def spearman(x, y) -> float:
    """Returns Spearman's rank correlation, ties at their average rank; NaN if one is constant."""
    x, y = _average_ranks(x), _average_ranks(y)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale else math.nan


def summarise(results: Results, resamples: int = RESAMPLES, seed: int = 0) -> dict:
    """Returns everything that the table says, as plain values.

    The keys: `coverage` (one line), `environments`, `left_out` (no run beat the random policy),
    `steps`, `seeds`, `settings` (name -> label, paper, ours, interval, rank, paper_rank), `raw`
    (environment -> random, best, means and scores by name), `gap`, `gap_interval`, `spearman`,
    `bars` (name -> value, bar, reached)
    and `notes`. Intervals are percentiles of 95 % with
    the scale of each environment held fixed; settings are drawn independently of each other.
    """
    runs = normalise(counted(results.scores), results.random)
    scaled = ~np.isnan(runs).all((1, 2))
    left_out = [e for e, kept in zip(results.environments, scaled, strict=True) if not kept]
    runs = runs[scaled].swapaxes(0, 1)
    rng = np.random.default_rng(seed)
    ours = {name: average(x) for name, x in zip(results.settings, runs, strict=True)}
    draws = {n: bootstrap(x, rng, resamples) for n, x in zip(results.settings, runs, strict=True)}
    paper = {name: PAPER[name].score for name in ours}
    ranks, paper_ranks = _ranks(ours), _ranks(paper)
    gap = gap_interval = None
    if {"none", "clip0.2"} <= set(ours):
        gap = ours["clip0.2"] - ours["none"]
        gap_interval = _interval(draws["clip0.2"] - draws["none"])
    known = [name for name in ours if ranks[name]]
    rho = spearman([ours[n] for n in known], [paper[n] for n in known]) if known else math.nan
    raw = _raw(results)
    enough = results.steps >= PUBLISHED_STEPS
    clipped = {e: x["means"].get("clip0.2") for e, x in raw.items() if enough}
    lost = [f"{e}: no run beat the random policy, left out of the averages." for e in left_out]
    return {
        "coverage": _coverage(results),
        "environments": list(results.environments),
        "left_out": left_out,
        "steps": results.steps,
        "seeds": list(results.seeds),
        "settings": {
            name: {
                "label": PAPER[name].label,
                "paper": paper[name],
                "ours": _plain(ours[name]),
                "interval": _interval(draws[name]),
                "rank": ranks[name],
                "paper_rank": paper_ranks[name],
            }
            for name in ours
        },
        "raw": raw,
        "gap": _plain(gap),
        "gap_interval": gap_interval,
        "spearman": _plain(rho),
        "bars": _bars(ranks, gap, rho, clipped),
        "notes": [*results.notes, *lost],
    }


def to_markdown(summary: dict) -> str:
    """Returns two tables, normalised and raw scores, with what they cover and what is odd."""
    lines = [
        summary["coverage"],
        "",
        "| setting | paper | ours | 95 % interval | rank | paper's rank |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in summary["settings"].values():
        cells = (row["label"], _fixed(row["paper"]), _fixed(row["ours"]), _range(row["interval"]))
        lines.append(_row(*cells, row["rank"] or "–", row["paper_rank"]))
    lines += ["", _explanation(summary), ""]
    lines += [f"- {_bar_text(name, *bar)}" for name, bar in summary["bars"].items()]
    lines += [f"- {note}" for note in summary["notes"]]
    lines += ["", "Mean return of the last 100 episodes: mean over seeds (each seed).", ""]
    lines += _raw_rows(summary)
    return "\n".join(lines) + "\n"


def to_csv(summary: dict) -> str:
    """Returns one row for each setting: normalised scores, then those of every run, unrounded."""
    raw, seeds = summary["raw"], summary["seeds"]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    runs = [f"{environment} seed {seed}" for environment in raw for seed in seeds]
    writer.writerow(["setting", "paper", "ours", "low", "high", "rank", "paper_rank", *runs])
    random = [x["random"] for x in raw.values() for _ in seeds]
    writer.writerow(["random", 0, 0, "", "", "", "", *random])
    for name, row in summary["settings"].items():
        scores = [score for x in raw.values() for score in x["scores"][name]]
        low, high = row["interval"] or (None, None)
        ours = [row["paper"], row["ours"], low, high, row["rank"], row["paper_rank"]]
        writer.writerow([name, *ours, *scores])
    return stream.getvalue()


def to_latex(summary: dict) -> str:
    """Returns the paper's Table 1 with our column, for a document that uses booktabs."""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{Average normalised score. {_tex(summary['coverage'])}}}",
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"setting & paper & ours & 95\,\% interval \\",
        r"\midrule",
    ]
    for row in summary["settings"].values():
        cells = [_tex(row["label"]), _tex(_fixed(row["paper"])), _tex(_fixed(row["ours"]))]
        lines.append(" & ".join([*cells, _tex(_range(row["interval"]))]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _coverage(results: Results) -> str:
    names, seeds = results.environments, len(results.seeds)
    text = f"{len(names)} of {len(ENVIRONMENTS)} environments ({', '.join(names)})"
    if len(results.settings) < len(PAPER):
        text += f", {len(results.settings)} of {len(PAPER)} settings"
    return f"{text}, {seeds} seed{'s' * (seeds > 1)}, {results.steps:,} steps each."


def _explanation(summary: dict) -> str:
    text = "Of each environment the random policy has score 0 and the best run 1."
    if len(summary["seeds"]) > 1:
        text += (
            f" Intervals: percentile bootstrap over runs within environments, {RESAMPLES:,} draws"
        )
        text += ", too narrow with so few seeds." if len(summary["seeds"]) < 10 else "."
    if len(summary["environments"]) < len(ENVIRONMENTS):
        text += f" The paper's column and the bars are for all {len(ENVIRONMENTS)} environments."
    return text


def _raw_rows(summary: dict) -> list[str]:
    raw, many = summary["raw"], len(summary["seeds"]) > 1
    digits = {environment: _digits(x) for environment, x in raw.items()}
    random = (_fixed(x["random"], digits[environment]) for environment, x in raw.items())
    lines = [_row("setting", *raw), "|---|" + "---:|" * len(raw), _row("random policy", *random)]
    for name, row in summary["settings"].items():
        cells = []
        for environment, x in raw.items():
            each = ", ".join(_fixed(score, digits[environment]) for score in x["scores"][name])
            mean = _fixed(x["means"][name], digits[environment])
            cells.append(f"{mean} ({each})" if many else mean)
        lines.append(_row(row["label"], *cells))
    return lines


def _bars(ranks: dict, gap: float | None, rho: float, clipped: dict) -> dict[str, tuple]:
    """Returns name -> (value, bar, reached) of the claims that these results can decide.

    `clipped` is the mean score of clip0.2 in each environment, unless there are too few steps.
    """
    known = [rank for rank in ranks.values() if rank]
    values: dict[str, tuple] = {}
    if ranks.get("clip0.2") and len(known) > BEST_RANK:
        values["rank of clip0.2"] = (ranks["clip0.2"], BEST_RANK)
    if ranks.get("none") and len(known) > 1:
        values["settings below none"] = (sum(rank > ranks["none"] for rank in known), 0)
    if gap is not None and not math.isnan(gap):
        values["clip0.2 minus none"] = (gap, GAP)
    if len(known) == len(PAPER) and not math.isnan(rho):
        values["rank correlation with the paper"] = (rho, CORRELATION)
    for environment, score in clipped.items():
        if score is not None:
            values[f"{environment}, clip0.2"] = (score, PUBLISHED[environment])
    return {
        name: (value, bar, value <= bar if name in AT_MOST else value >= bar)
        for name, (value, bar) in values.items()
    }


def _bar_text(name: str, value, bar, reached: bool) -> str:
    side = "at most" if name in AT_MOST else "at least"
    value = value if isinstance(value, int) else _fixed(value, 0 if abs(bar) > 10 else 2)
    return f"{name}: {value} ({side} {bar}: {'reached' if reached else 'missed'})"


def _raw(results: Results) -> dict[str, dict]:
    raw = {}
    for i, environment in enumerate(results.environments):
        by_name = dict(zip(results.settings, results.scores[i], strict=True))
        there = results.scores[i][~np.isnan(results.scores[i])]
        raw[environment] = {
            "random": float(results.random[i]),
            "best": float(there.max()) if len(there) else None,
            "means": {name: _plain(average(x[None])) for name, x in by_name.items()},
            "scores": {name: [_plain(score) for score in x] for name, x in by_name.items()},
        }
    return raw


def _average_ranks(values) -> np.ndarray:
    _, inverse, counts = np.unique(
        np.asarray(values, float), return_inverse=True, return_counts=True
    )
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _ranks(scores: dict[str, float]) -> dict[str, int | None]:
    """Returns 1 for the highest score, the same for equal ones, None for NaN."""
    return {
        name: None if math.isnan(x) else 1 + sum(other > x for other in scores.values())
        for name, x in scores.items()
    }


def _interval(draws: np.ndarray) -> list[float] | None:
    return None if np.isnan(draws).any() else np.quantile(draws, [0.025, 0.975]).tolist()


def _plain(x) -> float | None:
    return None if x is None or math.isnan(x) else float(x)


def _digits(raw: dict) -> int:
    """Returns how many decimals show about four figures of an environment's range."""
    span = abs((raw["best"] or 0) - raw["random"])
    return min(3, max(0, 3 - math.floor(math.log10(span)))) if span else 0


def _fixed(x: float | None, digits: int = 2) -> str:
    # Adding 0 to a rounded -0.001 takes the sign away.
    return "–" if x is None else f"{round(x, digits) + 0.0:.{digits}f}"


def _range(interval: list[float] | None) -> str:
    return "–" if interval is None else f"{_fixed(interval[0])} to {_fixed(interval[1])}"


def _row(*cells) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _tex(text: str) -> str:
    """Returns the text with what LaTeX reads otherwise replaced; a sign before a digit is minus."""
    for plain, tex in {"%": r"\%", "ε": r"$\epsilon$", "β": r"$\beta$", "–": "--"}.items():
        text = text.replace(plain, tex)
    return " ".join(f"${word}$" if _negative(word) else word for word in text.split(" "))


def _negative(word: str) -> bool:
    return word.startswith("-") and word[1:2].isdigit()


def _in_a_line(summary: dict) -> str:
    """All settings and their scores, the paper's in brackets, for the screen."""
    rows = summary["settings"].items()
    known = ((name, row) for name, row in rows if row["ours"] is not None)
    return ", ".join(f"{name} {row['ours']:.2f} ({row['paper']:.2f})" for name, row in known)
