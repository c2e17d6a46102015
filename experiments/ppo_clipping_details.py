"""Which undocumented choice makes an unclipped policy collapse? Every choice, switched alone.

The PPO paper says that its negative score without clipping comes from one environment, half
cheetah, that ends far below the random policy, and leaves open most of what
`ppo_clipping_table.py` takes from ppo1. Here each of those choices is changed by itself, without
clipping, with clip 0.2 and with a fixed KL penalty of 1: fifteen variants (the table's own is the
first) in four environments, three seeds and half a million steps each. Reacher is one of them
because our own table's unclipped runs end far below the random policy there.

Twelve variants differ in numbers and are one program of 108 runs for each environment; epochs and
initialisation are compiled in, so that those three are programs of nine runs. Rewards are scaled
by a wrapper that is always there and switched off by `scale_reward`. A run has collapsed when it
ends with less than half of the best it had gained over the random policy.

Result (collapsed runs of 180): none 70, clip 0.2 1, fixed 1 4. HalfCheetah without clipping ends at
-175, and far below the random policy (-652) without standardised advantages: -340045, with
gradients bounded at 0.5: -1615, with raw observations: -1111. More in docs/clipping_table.md.

Command: jrl run experiments/ppo_clipping_details.py         (2 h 9 min)
         jrl run experiments/ppo_clipping_details.py --steps 100000 --seeds 1 --points 7
Machine: 2 CPU cores of an AMD EPYC, shared with other work. Seeds: 0, 1, 2.
"""

import dataclasses
import pathlib
from typing import Any

from ppo_clipping import details, settings, training

from jrl.algos import ppo
from jrl.envs.mujoco.task import Engine
from jrl.experiment import Experiment

__all__ = ["ClippingDetails", "experiment"]


@dataclasses.dataclass(frozen=True)
class ClippingDetails:
    """Settings x variants x seeds: of each environment one population for all that are numbers,
    and one for each variant that is not."""

    environments: tuple[str, ...] = ("InvertedPendulum", "HalfCheetah", "Hopper", "Reacher")
    """Which of the seven of Table 1."""
    steps: int = 500_000
    """Steps of each run, rounded up to whole iterations of 2048."""
    seeds: int = 3
    """Runs of each variant."""
    seed: int = 0
    """The first seed."""
    points: int = 35
    """Points of the learning curves."""
    checkpoint_every: int = 2
    """Points between two checkpoints."""
    engine: Engine = "auto"
    """Physics: the custom call, the callback or MJX."""
    devices: int | None = None
    """Devices the runs are split over; None for all."""
    config: ppo.Config = dataclasses.replace(settings.CONFIG, normalize_reward=True)
    hyper: ppo.Hyper = dataclasses.replace(settings.HYPER, scale_reward=0.0)

    @property
    def name(self) -> str:
        """Name of the default directory."""
        return "ppo_clipping_details"

    def validate(self) -> None:
        """Raises ValueError with one line that names the field and the fix."""
        settings.check(self.environments)
        for name in self.environments:
            for population in self.populations(name):
                population.validate()

    def populations(self, name: str) -> list[Experiment]:
        """The populations of one environment: that of all numbers, then one for each program."""
        numbers = self.training(name, name, details.VARIANTS)
        programs = [
            self.training(name, f"{name}-{variant.replace(' ', '-')}", {variant: {}}, variant)
            for variant in details.PROGRAMS
        ]
        return [numbers, *programs]

    def training(
        self, name: str, place: str, variants: dict[str, dict[str, float]], program: str = ""
    ) -> Experiment:
        """One population: some variants, compiled as `program` says, trained in `place`."""
        env = settings.environment(name, self.engine)
        return Experiment(
            name=place,
            make=lambda config: settings.algorithm(env, config, details.initializer(program)),
            config=dataclasses.replace(self.config, **details.PROGRAMS.get(program, {})),
            hyper=self.hyper,
            steps=self.steps,
            seeds=self.seeds,
            seed=self.seed,
            settings={
                f"{variant}: {label}": {**settings.SETTINGS[label], **changes}
                for variant, changes in variants.items()
                for label in details.SETTINGS
            },
            points=self.points,
            checkpoint_every=self.checkpoint_every,
            devices=self.devices,
            tensorboard=False,
        )

    def run(self, directory: pathlib.Path, resume: bool = False) -> dict[str, Any]:
        """Runs environment by environment; every finished one leaves its JSON and a new table.

        Goes on where a run that was stopped or killed had been, bit for bit.
        """
        directory = pathlib.Path(directory)
        training.check_same(self, directory)
        for name in self.environments:
            file = directory / f"{name}.json"
            if file.exists():
                continue
            populations, summaries = self.populations(name), []
            for population in populations:
                summaries.append(training.train(population, directory))
                if not summaries[-1]["finished"]:
                    return {"finished": False, "environment": name, "program": population.name}
            training.save(file, self.result(name, populations, summaries, directory))
            details.write(directory, directory)
        return {"finished": True, **details.write(directory, directory)}

    def result(
        self,
        name: str,
        populations: list[Experiment],
        summaries: list[dict[str, Any]],
        directory: pathlib.Path,
    ) -> dict[str, Any]:
        """What is kept of one environment."""
        env, usual = settings.environment(name, self.engine), ClippingDetails()
        changes = settings.changes((self.config, usual.config), (self.hyper, usual.hyper))
        changes += ["engine=mjx"] * (self.engine == "mjx")
        untrained = [
            training.random_scores(population, env, details.initializer(program))
            for population, program in zip(populations, ("", *details.PROGRAMS), strict=True)
        ]
        return {
            **training.facts(populations[0], env, directory),
            "protocol": ", ".join(["one choice changed", *changes]),
            **training.circumstances(summaries[0]),
            "hours": sum(summary["seconds"] for summary in summaries) / 3600,
            "settings": [
                {**entry, "random_score": randoms[entry["name"]]}
                for population, randoms in zip(populations, untrained, strict=True)
                for entry in training.entries(population, directory)
            ],
        }


experiment = ClippingDetails()
