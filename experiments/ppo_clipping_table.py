"""Does PPO's clipping beat a KL penalty, and what happens without either? Table 1 of the paper.

Eleven settings (none, clip 0.1 / 0.2 / 0.3, adaptive KL 0.003 / 0.01 / 0.03, fixed KL 0.3 / 1 / 3 /
10) x seven MuJoCo environments x three seeds x one million steps: Schulman et al. 2017,
https://arxiv.org/abs/1707.06347, section 6.1. The 33 runs of an environment are one program.

Command: jrl run experiments/ppo_clipping_table.py          (2 h 0 min)
         jrl run experiments/ppo_clipping_table.py --quick  (two environments, 100k steps, one seed)
Machine: 2 CPU cores of an AMD EPYC, shared with other work. Seeds: 0, 1, 2.

Result (score with random policy 0 and best run 1, mean of 21 runs; paper in brackets): none -0.45
(-0.39); clip 0.1 0.75 (0.76), 0.2 0.76 (0.82), 0.3 0.70 (0.70); adaptive 0.003 0.69 (0.68), 0.01
0.69 (0.74), 0.03 0.63 (0.71); fixed 0.3 0.60 (0.62), 1 0.68 (0.71), 3 0.70 (0.72), 10 0.62 (0.69).
Rank correlation 0.77. The score without any constraint is negative because of Reacher, in the paper
because of HalfCheetah.

From the paper (section 6.1 and its Table 3):
- one environment for each run, 2048 steps to a batch, 10 epochs of minibatches of 64;
- Adam with a constant step size of 3e-4, gamma 0.99, lambda 0.95;
- two hidden layers of 64 tanh units, a standard deviation that does not depend on the state, a
  separate network for the value, no entropy bonus;
- adaptive beta: begins at 1, halved where KL(old, new) < target / 1.5, doubled where it is more
  than 1.5 target;
- score: mean return of the last 100 episodes of training; in each environment the random policy is
  0 and the best run 1; three seeds.

From ppo1 (https://github.com/openai/baselines, baselines/ppo1), where the paper is silent:
- observations are standardised by running statistics, variance at least 0.01, clipped to +-5, and
  updated once per batch before learning; the old policy is evaluated anew under the new ones;
- advantages are standardised over the batch;
- value loss: the squared error with weight 1, not clipped (value_coef 2 of half the square);
- Adam's epsilon 1e-5, no clipping of gradients, no scaling of rewards;
- initial weights Gaussian, those of each unit scaled to length 1, to 0.01 in the policy's last
  layer; initial log-std 0;
- a time limit ends an episode as a failure does: nothing is bootstrapped from what would follow;
- actions are not clipped before the environment: costs are those of the action as sampled, and the
  engine clamps what it applies.

Not as in ppo1:
- its script anneals the step size linearly, the paper's Table 3 does not, for MuJoCo;
- it keeps the values of the rollout; here they too are evaluated anew under the new statistics;
- its script anneals the clipping range with the step size; here it is constant;
- its Adam divides by sqrt(v) + epsilon before correcting the bias, here after it: in the first
  updates its epsilon is in effect up to 30 times larger;
- it takes the first action of a batch from the policy before, and counts the steps of whole
  episodes only;
- it has no KL penalties: theirs are the paper's equations 7 and 8, with exact divergences.

Ours:
- Gymnasium's -v5 tasks on MuJoCo 4.0, where the paper had Gym's -v1 on MuJoCo 1.31. Known changes:
  no reward for being alive in the step that ends an episode (Hopper, Walker2d, both pendulums),
  equal friction of Walker2d's feet, Reacher's distance after the step and not before, observations
  without components that are always 0 (Reacher, InvertedDoublePendulum);
- float32 networks, physics in float64;
- 489 iterations, 1,001,472 steps;
- the divergence that adapts beta is that of the whole batch after the last epoch;
- an adaptive beta stays between 1e-30 and 1e30: from 0 or infinity there is no way back;
- an update that is not finite is skipped and counted, and the run goes on;
- a seed gives all settings of an environment the same first network and the same first state;
- the random policy is the untrained network (means about 0, standard deviation 1, actions not
  clipped), 100 episodes for each seed.

With other options (--config.num-envs 32, --engine mjx, ...) results say that their protocol is not
the paper's, and how. More in docs/clipping_table.md.
"""

import dataclasses
import pathlib
from typing import Any

from ppo_clipping import episodes, settings, table, training

from jrl.algos import ppo
from jrl.envs.mujoco.task import Engine
from jrl.experiment import Experiment
from jrl.run_directory import UsageError

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
        """The experiment as it is run: `quick` stands for options that are not given."""
        if not self.quick:
            return self
        short = {
            "environments": ("InvertedPendulum", "HalfCheetah"),
            "steps": 100_000,
            "seeds": 1,
            "points": 7,
            "checkpoint_every": 1,
        }
        usual = ClippingTable()
        left = {k: v for k, v in short.items() if getattr(self, k) == getattr(usual, k)}
        return dataclasses.replace(self, quick=False, **left)

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
        training.check_same(self, directory)
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
                "protocol": whole.protocol(),
                **training.circumstances(summary),
                "settings": training.entries(population, directory),
            }
            training.save(file, result)
            table.write(directory, directory)
        return {"finished": True, **table.write(directory, directory)}

    def episodes(self, directory, environment=None, wanted=("best", "worst")):
        """Plays an episode of each wanted setting of one environment, by default the first."""
        whole = self.whole()
        name = environment or whole.environments[0]
        if name not in whole.environments:
            known = ", ".join(whole.environments)
            raise UsageError(f"environment: no {name!r} in this run, choose from {known}")
        place = pathlib.Path(directory) / "training" / name
        return episodes.play(whole.training(name), place, name, wanted, self.engine)

    def protocol(self) -> str:
        """Says in words whether this is the paper's protocol, and what is not."""
        pairs = (self.config, settings.CONFIG), (self.hyper, settings.HYPER)
        changes = settings.changes(*pairs) + ["engine=mjx"] * (self.engine == "mjx")
        usual = ClippingTable()
        changes += [
            f"{name}={getattr(self, name)}"
            for name in ("steps", "seeds")
            if getattr(self, name) != getattr(usual, name)
        ]
        return f"not the paper's: {', '.join(changes)}" if changes else "paper"


experiment = ClippingTable()
