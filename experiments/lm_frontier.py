"""Reward against divergence: how close do DPO and PPO come to what is possible at all?

    pi*(y|x) = pi_ref(y|x) exp(r(x, y) / beta) / Z(x)

has the most reward of all policies at its divergence from the reference (Rafailov et al. 2023,
eq. 4, https://arxiv.org/abs/2305.18290), and both algorithms aim at it, each with its own beta and
with what it knows of r: preferences, or a reward model that was fitted to them. What pi* is worth
is estimated from answers of the reference, weighted by exp(r / beta) with the true r.

Command: jrl run experiments/lm_frontier.py (after lm_sft_preferences and lm_reward_model)
Machine: 2 CPU cores, shared. Wall-clock: 14 min for eight runs of 83 to 101 s. Seeds: 1.

Result: divergence in nats, mean reward of 512 held-out prompts, and the reward of pi* at that
divergence (the reference's is 2.04):

    beta    DPO                        PPO
    0.25    3.00: 3.52 of 3.93         1.93: 3.58 of 3.68
    0.5     1.13: 3.22 of 3.35         0.89: 3.13 of 3.21
    1       0.43: 2.78 of 2.85         0.30: 2.67 of 2.71
    2       0.12: 2.44 of 2.46         0.08: 2.36 of 2.36

Both are close to what is possible where they stay close to the reference. With a small beta DPO
goes far, and buys little with it: pairs do not tell what answers unlike theirs are worth. The files
are in experiments/results/lm_frontier.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import lm_dpo
import lm_rlhf_ppo
import numpy as np

from jrl.lm.requests import Settings
from jrl.run_directory import RunDirectory
from jrl.streams import StreamExperiment
from jrl.streams.models import open_model

COLOURS = {"dpo": "#0072B2", "ppo": "#D55E00"}


def possible(task: Any, betas: np.ndarray, prompts: int = 64, answers: int = 128) -> np.ndarray:
    """Estimates pi* of a task's model and reward: (divergences in nats, rewards), one per beta."""
    opened, key = open_model(task.model, jax.random.key(0)), jax.random.key(1)
    asker = task.asking.asker(opened, task.asking.reward, "float32")
    settings = Settings(task.asking.max_new_tokens, stop_ids=opened.tokenizer.eos_ids)
    records = task.data.held_out_records()[:prompts]
    groups, _ = asker(opened.params, records, key, answers, settings)
    asker.close()
    rewards = np.array([[answer.reward for answer in group] for group in groups])
    points = []
    for beta in betas:
        weights = np.exp((rewards - rewards.max(axis=1, keepdims=True)) / beta)
        weights /= weights.sum(axis=1, keepdims=True)
        divergence = np.sum(weights * np.log(weights * answers), axis=1)
        points.append((divergence.mean(), np.sum(weights * rewards, axis=1).mean()))
    return np.array(points).T


@dataclasses.dataclass(frozen=True)
class Frontier:
    """Runs DPO and PPO with each beta, one after another, and draws where they end."""

    name: str = "lm_frontier"
    """Name of the default directory below runs/."""
    betas: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    """Prices of divergence."""
    dpo: StreamExperiment = lm_dpo.experiment
    """What is run for DPO."""
    ppo: StreamExperiment = lm_rlhf_ppo.experiment
    """What is run for PPO."""

    def validate(self) -> None:
        """Raises ValueError with one line that names the field and the fix."""
        if not self.betas or min(self.betas) <= 0:
            raise ValueError(f"betas must be positive numbers, got {self.betas}")
        self.dpo.validate()
        self.ppo.validate()

    def run(self, directory: str | pathlib.Path, resume: bool = False) -> dict:
        """Runs what is not finished yet, and draws."""
        directory, rows = pathlib.Path(directory), []
        line = possible(self.dpo.task, np.geomspace(50, 0.1, 100))
        for beta in self.betas:
            for name in ("dpo", "ppo"):
                experiment: StreamExperiment = getattr(self, name)
                hyper = experiment.hyper.replace(beta=beta)
                experiment = dataclasses.replace(experiment, hyper=hyper)
                print(f"{name}, beta {beta:g}", flush=True)
                command = f"jrl resume {directory}"
                summary = experiment.run(directory / f"{name}_{beta:g}", True, command=command)
                if not summary["finished"]:
                    return summary
                reward, divergence = summary["final"]["eval/reward"], summary["final"]["eval/kl"]
                most = float(np.interp(divergence, *line))
                rows.append((name, beta, divergence, reward, most))
                print("  {2:.2f} nats: reward {3:.2f} of {4:.2f}".format(*rows[-1]), flush=True)
        names = ("algorithm", "beta", "kl", "reward", "possible")
        summary = {"finished": True, "runs": [dict(zip(names, row, strict=True)) for row in rows]}
        return summary | {"plot": str(self.draw(directory, line))}

    def draw(self, directory: pathlib.Path, line: np.ndarray) -> pathlib.Path:
        """Draws reward against divergence during training, and what is possible."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 5), layout="constrained", dpi=120)
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.plot(*line, color="0.3", label="pi* (estimated)")
        for name, colour in COLOURS.items():
            for beta in self.betas:
                rows = RunDirectory(directory / f"{name}_{beta:g}").rows()
                points = [row["means"] for row in rows if "eval/kl" in row["means"]]
                x, y = ([point[key] for point in points] for key in ("eval/kl", "eval/reward"))
                axes.plot(x, y, color=colour, alpha=0.3, linewidth=1)
                axes.plot(x[-1:], y[-1:], "o", color=colour)
                axes.annotate(f"{beta:g}", (x[-1], y[-1]), fontsize="small")
            axes.plot([], [], "o-", color=colour, label=f"{name} (with its beta)")
        axes.set_xlabel("KL(pi || pi_ref) of an answer, nats")
        axes.set_ylabel("mean reward of held-out prompts")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        path = directory / "frontier.png"
        figure.savefig(path)
        return path


experiment = Frontier()
