"""Does PPO's clipping beat a KL penalty, and what happens without either? Table 1 of the paper.

Eleven settings (none, clip 0.1 / 0.2 / 0.3, adaptive KL 0.003 / 0.01 / 0.03, fixed KL 0.3 / 1 / 3 /
10) x seven MuJoCo environments x three seeds x one million steps: Schulman et al. 2017,
https://arxiv.org/abs/1707.06347, section 6.1. The 33 runs of an environment are one program.

Command: jrl run experiments/ppo_clipping_table.py          (about two hours on two free cores)
         jrl run experiments/ppo_clipping_table.py --quick  (two environments, 100k steps, one seed)
"""

import dataclasses
import json
import os
import pathlib
import platform
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ppo_clipping import settings, table

from jrl.algos import ppo
from jrl.envs.mujoco.task import Engine
from jrl.experiment import Experiment
from jrl.run_directory import RunDirectory

__all__ = ["ClippingTable", "experiment"]

QUANTITIES = ("kl", "kl_q99", "ratio_q1", "ratio_q99", "grad_norm_q50", "grad_norm_q99", "kl_beta")
"""Metrics that a result keeps, as medians over the points of each run."""


@dataclasses.dataclass(frozen=True)
class ClippingTable:
    """Table 1: all settings and seeds of an environment as one population, one after the other."""

    environments: tuple[str, ...] = tuple(settings.ENVIRONMENTS)
    """Which of the seven, in the order of running."""
    steps: int = 1_000_000
    """Steps of each run, rounded up to whole iterations of 2048."""
    seeds: int = 3
    """Runs of each setting in each environment."""
    seed: int = 0
    """The first seed."""
    points: int = 163
    """Points of the learning curves."""
    checkpoint_every: int = 8
    """Points between two checkpoints, a minute or less on two cores."""
    quick: bool = False
    """InvertedPendulum and HalfCheetah, one seed, 100,000 steps: minutes."""
    engine: Engine = "auto"
    """Physics: the custom call, the callback or MJX."""
    devices: int | None = None
    """Devices the runs are split over; None for all."""
    config: ppo.Config = settings.CONFIG
    hyper: ppo.Hyper = settings.HYPER

    @property
    def name(self) -> str:
        """Name of the default directory."""
        return "ppo_clipping_table_quick" if self.quick else "ppo_clipping_table"

    def validate(self) -> None:
        """Raises ValueError with one line that names the field and the fix."""
        for name in self.environments:
            if name not in settings.ENVIRONMENTS:
                known = ", ".join(settings.ENVIRONMENTS)
                raise ValueError(f"environments: no {name!r}, choose from {known}")
        if not self.environments or len(set(self.environments)) < len(self.environments):
            raise ValueError("environments: name one or more, each once")
        for name in self.whole().environments:
            self.whole().training(name).validate()

    def whole(self) -> "ClippingTable":
        """The experiment as it is run: `quick` is an abbreviation."""
        if not self.quick:
            return self
        names = ("InvertedPendulum", "HalfCheetah")
        return dataclasses.replace(
            self, quick=False, environments=names, steps=100_000, seeds=1, points=7
        )

    def training(self, name: str) -> Experiment:
        """The population of one environment."""
        env = settings.environment(name, self.engine)
        return Experiment(
            name=name,
            make=lambda config: settings.algorithm(env, config),
            config=self.config,
            hyper=self.hyper,
            steps=self.steps,
            seeds=self.seeds,
            seed=self.seed,
            settings=settings.SETTINGS,
            points=self.points,
            checkpoint_every=self.checkpoint_every,
            devices=self.devices,
            tensorboard=False,
        )

    def run(self, directory: pathlib.Path, resume: bool = False) -> dict[str, Any]:
        """Runs environment by environment; every finished one leaves its JSON and a new table.

        Goes on where a run that was stopped or killed had been, bit for bit.
        """
        whole, directory = self.whole(), pathlib.Path(directory)
        for name in whole.environments:
            file = directory / f"{name}.json"
            if file.exists():
                continue
            print(name, flush=True)
            training = whole.training(name)
            place, command = directory / "training" / name, f"jrl resume {directory}"
            summary = training.run(place, resume=True, command=command)
            if not summary["finished"]:
                return {"finished": False, "environment": name, "step": summary["step"]}
            result = whole.result(name, RunDirectory(place), summary)
            scratch = file.with_suffix(".tmp")
            scratch.write_text(json.dumps(result, allow_nan=False) + "\n")
            scratch.replace(file)
            table.write(directory, directory)
        return {"finished": True, **table.write(directory, directory)}

    def result(self, name: str, run: RunDirectory, summary: dict[str, Any]) -> dict[str, Any]:
        """What is kept of one environment: scores, curves and what the checks saw."""
        rows = run.rows()
        steps = sorted({row["step"] for row in rows})
        entries = []
        for label, setting in settings.SETTINGS.items():
            hyper = dataclasses.replace(self.hyper, **setting)
            runs = [
                [row["means"] for row in rows if (row["setting"], row["seed"]) == (label, seed)]
                for seed in range(self.seed, self.seed + self.seeds)
            ]
            entry = {
                "name": label,
                "clip_eps": None if np.isinf(hyper.clip_eps) else hyper.clip_eps,
                "kl_beta": hyper.kl_beta,
                "kl_target": hyper.kl_target,
                "adaptive": bool(hyper.kl_adapt),
                "scores": [points[-1]["eval/return"] for points in runs],
                "curves": [[_short(x["eval/return"]) for x in points] for points in runs],
                "skipped": [float(np.mean([x["skipped"] for x in points])) for points in runs],
                "medians": {key: [_median(points, key) for points in runs] for key in QUANTITIES},
            }
            entries.append(entry)
        random = self.random_score(name)
        return {
            "env": settings.environment(name, self.engine).name,
            "steps": summary["steps"],
            "seeds": list(range(self.seed, self.seed + self.seeds)),
            "random_score": random,
            "random_episodes": self.config.eval_episodes * self.seeds,
            "protocol": self.protocol(),
            "settings": entries,
            "curve_steps": steps,
            "machine": _machine(),
            "hours": summary["seconds"] / 3600,
            "steps_per_second": summary["steps_per_second"],
            "versions": summary["versions"],
            "git_commit": summary["git_commit"],
        }

    def random_score(self, name: str) -> float:
        """Mean return of the untrained policies of all seeds, 100 episodes each."""
        env = settings.environment(name, self.engine)
        random = ppo.make(
            env, dataclasses.replace(self.config, num_envs=1, normalize_observation=False)
        )

        def play(seed):
            key = jax.random.key(seed)
            score, count = random.evaluate(random.init(key, self.hyper), key, self.hyper)["return"]
            return score / count

        seeds = jnp.arange(self.seed, self.seed + self.seeds)
        return float(np.mean(jax.jit(jax.vmap(play))(seeds)))

    def protocol(self) -> str:
        """Says in words whether this is the paper's protocol."""
        if (self.config, self.hyper) == (settings.CONFIG, settings.HYPER):
            return "paper"
        return f"not the paper's: {self.config} {self.hyper}"


def _short(x: float | None) -> float | None:
    return None if x is None else float(f"{x:.6g}")


def _median(points: list[dict[str, Any]], key: str) -> float | None:
    values = [np.inf if x[key] is None else x[key] for x in points]
    median = float(np.median(values))
    return _short(median) if np.isfinite(median) else None


def _machine() -> str:
    names = {device.device_kind for device in jax.devices()}
    return f"{os.cpu_count()} cores, {platform.machine()}; jax devices: {', '.join(sorted(names))}"


experiment = ClippingTable()
