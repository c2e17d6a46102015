"""Does PPO's clipping beat a KL penalty, and what happens without either? Table 1 of the paper.

Eleven settings (none, clip 0.1 / 0.2 / 0.3, adaptive KL 0.003 / 0.01 / 0.03, fixed KL 0.3 / 1 / 3 /
10) x seven MuJoCo environments x three seeds x one million steps: Schulman et al. 2017,
https://arxiv.org/abs/1707.06347, section 6.1. The 33 runs of an environment are one program.

Command: jrl run experiments/ppo_clipping_table.py          (about two hours on two free cores)
         jrl run experiments/ppo_clipping_table.py --quick  (two environments, 100k steps, one seed)
"""

import dataclasses
import pathlib
from typing import Any

from ppo_clipping import settings, table, training

from jrl.algos import ppo
from jrl.envs.mujoco.task import Engine
from jrl.experiment import Experiment

__all__ = ["ClippingTable", "experiment"]


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
        settings.check(self.environments)
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
            population = whole.training(name)
            summary = training.train(population, directory)
            if not summary["finished"]:
                return {"finished": False, "environment": name, "step": summary["step"]}
            env = settings.environment(name, self.engine)
            result = {
                **training.facts(population, env, directory),
                "protocol": self.protocol(),
                **training.circumstances(summary),
                "settings": training.entries(population, directory),
            }
            training.save(file, result)
            table.write(directory, directory)
        return {"finished": True, **table.write(directory, directory)}

    def protocol(self) -> str:
        """Says in words whether this is the paper's protocol."""
        if (self.config, self.hyper) == (settings.CONFIG, settings.HYPER):
            return "paper"
        return f"not the paper's: {self.config} {self.hyper}"


experiment = ClippingTable()
