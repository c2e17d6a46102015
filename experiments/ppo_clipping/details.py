"""The variants of `ppo_clipping_details.py`, and the table that says which of them collapse."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ppo_clipping import figures, table
from ppo_clipping.results import load

__all__ = [
    "NAMES",
    "PROGRAMS",
    "SETTINGS",
    "VARIANTS",
    "collapsed",
    "initializer",
    "summarise",
    "to_markdown",
    "write",
]

SETTINGS = ("none", "clip0.2", "kl1")
"""Settings of Table 1 that every variant is run with."""

VARIANTS = {
    "as in the table": {},
    "no observation filter": {"filter_observation": 0.0},
    "filter updated afterwards": {"observe_first": 0.0},
    "advantages standardised per minibatch": {"standardize": 2.0},
    "advantages not standardised": {"standardize": 0.0},
    "rewards scaled": {"scale_reward": 1.0},
    "initial log-std -1": {"log_std": -1.0},
    "Adam epsilon 1e-8": {"adam_eps": 1e-8},
    "learning rate annealed": {"anneal": 1.0},
    "time limit is a truncation": {"time_limit_ends": 0.0},
    "gradient norm at most 0.5": {"max_grad_norm": 0.5},
    "actions clipped": {"clip_action": 1.0},
}
"""Name -> what differs from the table, a number each: all of them are one program."""

PROGRAMS = {
    "epochs 3": {"epochs": 3},
    "epochs 20": {"epochs": 20},
    "orthogonal initialisation": {},
}
"""Name -> what differs in the `Config` of variants that are compiled by themselves; how the network
begins is no field of it."""

NAMES = tuple(f"{variant}: {label}" for variant in (*VARIANTS, *PROGRAMS) for label in SETTINGS)
"""Names of all settings of a result."""


def initializer(program: str) -> str:
    """Name of how the networks of a program begin."""
    return "orthogonal" if program.startswith("orthogonal") else "normc"


def collapsed(curve: Sequence[float] | np.ndarray, random: float) -> bool:
    """Says whether a run lost more than half of the best it had been above the random policy.

    `curve` is the mean return of the last 100 episodes, NaN before the first one ended. A run that
    never was above the random policy has nothing to lose: it counts where it ends below.

    >>> collapsed([math.nan, 900.0, 30.0], 7.0), collapsed([0.0, 900.0, 800.0], 7.0)
    (True, False)
    >>> collapsed([-700.0, -9000.0], -640.0)
    True
    """
    best = max((x for x in curve if not math.isnan(x)), default=math.nan)
    gained, last = best - random, curve[-1] - random
    return bool(last < 0.5 * gained if gained > 0 else last < 0)


def summarise(directory: str | pathlib.Path) -> dict[str, Any]:
    """Reads the results that are there; returns plain values.

    The keys: `environments` (name -> score of the random policy), `steps`, `seeds`, `hours`,
    `variants` (variant -> environment -> setting -> `scores` and `collapsed`, of each seed, and
    `random`: a variant's own untrained policy is what its runs are judged by) and `notes`. Raises
    ValueError for a bad result.
    """
    files, notes = load(directory, NAMES)
    first = next(iter(files.values()))
    rows: dict[str, dict[str, Any]] = {}
    for name in (name for name in NAMES if name in first["settings"]):
        variant, label = name.rsplit(": ", 1)
        for environment, data in files.items():
            runs = data["settings"][name]
            if "random_score" not in runs:
                raise ValueError(f"{environment}.json: {name}.random_score: missing")
            random = runs["random_score"]
            rows.setdefault(variant, {}).setdefault(environment, {})[label] = {
                "scores": [None if math.isnan(x) else float(x) for x in runs["scores"]],
                "collapsed": [collapsed(curve, random) for curve in runs["curves"]],
                "random": random,
            }
    return {
        "environments": {name: data["random_score"] for name, data in files.items()},
        "steps": first["steps"],
        "seeds": first["seeds"],
        "hours": sum(data.get("hours", 0.0) for data in files.values()),
        "variants": rows,
        "notes": list(notes),
    }


def to_markdown(summary: dict[str, Any]) -> str:
    """Returns a row for each variant: mean scores, in brackets how many of the runs collapsed."""
    environments = summary["environments"]
    columns = [(environment, label) for environment in environments for label in SETTINGS]
    lines = [
        f"| variant | {' | '.join(', '.join(column) for column in columns)} |",
        "|---|" + "---:|" * len(columns),
    ]
    for variant, cells in summary["variants"].items():
        texts = [_cell(cells[environment].get(label)) for environment, label in columns]
        lines.append(f"| {variant} | {' | '.join(texts)} |")
    seeds = len(summary["seeds"])
    random = ", ".join(f"{environment} {_figures(x)}" for environment, x in environments.items())
    note = (
        f"Mean over {seeds} seed{'s' * (seeds > 1)} of the return of the last 100 episodes, after "
        f"{summary['steps']:,} steps; in brackets how many runs lost more than half of what they "
        "had gained over the random policy, or ended below it without ever having been above. "
        f"Random policy: {random}{_others(summary)}."
    )
    lines += ["", note]
    if summary["notes"]:
        lines += ["", *(f"- {text}" for text in summary["notes"])]
    return "\n".join(lines) + "\n"


def write(results_dir: str | pathlib.Path, output_dir: str | pathlib.Path) -> dict[str, Any]:
    """Writes `details.md` and, where matplotlib is there, `details.png`; returns the summary."""
    summary = summarise(results_dir)
    files = {"details.md": to_markdown(summary).encode()}
    if figures.available():
        files["details.png"] = figures.png(figures.details(summary, SETTINGS))
    table.put(files, pathlib.Path(output_dir))
    return summary | {"files": list(files)} | figures.left_out()


def _others(summary: dict[str, Any]) -> str:
    """Names the variants whose untrained policy is another one."""
    texts = []
    for variant, cells in summary["variants"].items():
        own = {
            environment: next(iter(runs.values()))["random"] for environment, runs in cells.items()
        }
        far = {
            environment: x
            for environment, x in own.items()
            if abs(x - summary["environments"][environment]) > 0.1 * abs(x)
        }
        if far:
            each = ", ".join(f"{environment} {_figures(x)}" for environment, x in far.items())
            texts.append(f"; {variant}: {each}")
    return "".join(texts)


def _cell(runs: dict[str, Any] | None) -> str:
    known = [x for x in runs["scores"] if x is not None] if runs else []
    if not runs or not known:
        return "–"
    lost = sum(runs["collapsed"])
    return f"{_figures(np.mean(known))} ({lost})" if lost else _figures(np.mean(known))


def _figures(x: float) -> str:
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"
