"""Training of one environment: a population with its own run directory, and what is kept of it."""

import dataclasses
import json
import os
import pathlib
import platform
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jrl.algos import ppo
from jrl.envs.environment import Environment
from jrl.experiment import Experiment
from jrl.run_directory import RunDirectory, UsageError, difference, plain
from ppo_clipping import settings

__all__ = [
    "check_same",
    "circumstances",
    "entries",
    "facts",
    "random_score",
    "random_scores",
    "save",
    "train",
]

QUANTITIES = ("kl", "kl_q99", "ratio_q1", "ratio_q99", "grad_norm_q50", "grad_norm_q99", "kl_beta")
"""Metrics that a result keeps, as medians over the points of each run."""


def train(experiment: Experiment, directory: pathlib.Path) -> dict[str, Any]:
    """Runs an experiment in `directory`/training, or goes on with it; returns its summary."""
    print(experiment.name, flush=True)
    place, command = directory / "training" / experiment.name, f"jrl resume {directory}"
    return experiment.run(place, resume=True, command=command)


def check_same(experiment: Any, directory: pathlib.Path) -> None:
    """Raises UsageError if the run in `directory` was started with other options.

    The environments may be others, and the devices: no result depends on them.
    """
    if not (directory / "config.json").exists():
        RunDirectory.create(directory, plain(experiment))
        return
    free = ("environments", "devices")
    saved, now = (
        {name: value for name, value in values.items() if name not in free}
        for values in (RunDirectory(directory).config["values"], plain(experiment))
    )
    if found := difference(saved, now):
        name, old, new = found
        raise UsageError(
            f"{name} is {old} in {directory} and now {new}: "
            "go on with the same options, or start another directory"
        )


def save(file: pathlib.Path, result: dict[str, Any]) -> None:
    """Writes a result in one rename."""
    scratch = file.with_suffix(".tmp")
    scratch.write_text(json.dumps(result, allow_nan=False) + "\n")
    scratch.replace(file)


def entries(experiment: Experiment, directory: pathlib.Path) -> list[dict[str, Any]]:
    """What is kept of every setting: scores, curves, and what the checks saw, for each seed.

    A score is the mean return of the last 100 episodes of a run; `skipped` the share of updates
    left out because they were not finite.
    """
    rows = RunDirectory(directory / "training" / experiment.name).rows()
    seeds = range(experiment.seed, experiment.seed + experiment.seeds)
    runs: dict[tuple[str, int], list] = {}
    for row in rows:
        runs.setdefault((row["setting"], row["seed"]), []).append(row["means"])
    kept = []
    for label, setting in experiment.settings.items():
        hyper = dataclasses.replace(experiment.hyper, **setting)
        mine = [runs[label, seed] for seed in seeds]
        kept.append(
            {
                "name": label,
                "clip_eps": None if np.isinf(hyper.clip_eps) else hyper.clip_eps,
                "kl_beta": hyper.kl_beta,
                "kl_target": hyper.kl_target,
                "adaptive": bool(hyper.kl_adapt),
                "scores": [points[-1]["eval/return"] for points in mine],
                "curves": [[_short(x["eval/return"]) for x in points] for points in mine],
                "skipped": [float(np.mean([x["skipped"] for x in points])) for points in mine],
                "medians": {key: [_median(points, key) for points in mine] for key in QUANTITIES},
            }
        )
    return kept


def facts(experiment: Experiment, env: Environment, directory: pathlib.Path) -> dict[str, Any]:
    """What the settings have in common: the task, its random policy, steps and seeds."""
    rows = RunDirectory(directory / "training" / experiment.name).rows()
    seeds = list(range(experiment.seed, experiment.seed + experiment.seeds))
    return {
        "env": env.name,
        "steps": max(row["step"] for row in rows),
        "seeds": seeds,
        "random_score": random_score(env, experiment.config, experiment.hyper, seeds),
        "random_episodes": experiment.config.eval_episodes * len(seeds),
        "curve_steps": sorted({row["step"] for row in rows}),
    }


def circumstances(summary: dict[str, Any]) -> dict[str, Any]:
    """Where and with what a population was trained, and how long it took."""
    kinds = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}; jax devices: {kinds}",
        "hours": summary["seconds"] / 3600,
        "steps_per_second": summary["steps_per_second"],
        "versions": summary["versions"],
        "git_commit": summary["git_commit"],
    }


def random_score(
    env: Environment, config: ppo.Config, hyper: ppo.Hyper, seeds, initializer: str = "normc"
) -> float:
    """Mean return of the untrained policies of all seeds, `config.eval_episodes` each."""
    raw = dataclasses.replace(
        config, num_envs=1, minibatches=1, microbatches=1, normalize_observation=False
    )
    random = ppo.make(env, raw, network=settings.network(env, config, initializer))

    def play(seed):
        key = jax.random.key(seed)
        total, count = random.evaluate(random.init(key, hyper), key, hyper)["return"]
        return total / count

    return float(np.mean(jax.jit(jax.vmap(play))(jnp.asarray(list(seeds)))))


def random_scores(experiment: Experiment, env: Environment, initializer: str) -> dict[str, float]:
    """The `random_score` of every setting: they differ by width and by clipping."""
    seeds = range(experiment.seed, experiment.seed + experiment.seeds)
    known: dict[tuple, float] = {}
    scores = {}
    for label, setting in experiment.settings.items():
        hyper = dataclasses.replace(experiment.hyper, **setting)
        first = hyper.log_std, hyper.clip_action
        if first not in known:
            known[first] = random_score(env, experiment.config, hyper, seeds, initializer)
        scores[label] = known[first]
    return scores


def _short(x: float | None) -> float | None:
    return None if x is None else float(f"{x:.6g}")


def _median(points: list[dict[str, Any]], key: str) -> float | None:
    # What is not finite is recorded as None, and is the largest of all.
    median = float(np.median([np.inf if x[key] is None else x[key] for x in points]))
    return _short(median) if np.isfinite(median) else None
