"""Reward against divergence: how close do DPO and PPO come to what is possible at all?

    pi*(y|x) = pi_ref(y|x) exp(r(x, y) / beta) / Z(x)

is best at every divergence, and both algorithms should reach it with their own beta. Here it can be
computed: the reward of an answer depends on the number of its letters that are wanted, from 0 to
8, and under the reference, which has learned the data, each number is as likely as any other.

Command: jrl run experiments/lm_frontier.py (after lm_sft_preferences and lm_reward_model)
"""

import dataclasses
import pathlib

import lm_dpo
import lm_rlhf_ppo
import numpy as np

from jrl.run_directory import RunDirectory
from jrl.streams import StreamExperiment

COLOURS = {"dpo": "#0072B2", "ppo": "#D55E00"}


def best(beta: float, pairs=lm_dpo.PAIRS) -> tuple[float, float]:
    """Returns (reward, divergence in nats) of pi* for a price of divergence.

    Source: Rafailov et al. 2023, eq. 4, https://arxiv.org/abs/2305.18290.
    """
    rewards = pairs.scale * np.arange(pairs.answer_length + 1) / pairs.answer_length
    chances = np.exp((rewards - pairs.scale) / beta)
    chances /= chances.sum()
    return float(chances @ rewards), float(chances @ np.log(chances * len(chances)))


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
                rows.append((name, beta, reward, divergence, *best(beta)))
                print("  reward {2:.2f} at {3:.2f} nats; best {4:.2f} at {5:.2f}".format(*rows[-1]))
        names = ("algorithm", "beta", "reward", "kl", "best_reward", "best_kl")
        summary = {"finished": True, "runs": [dict(zip(names, row, strict=True)) for row in rows]}
        return summary | {"plot": str(self.draw(directory))}

    def draw(self, directory: pathlib.Path) -> pathlib.Path:
        """Draws reward against divergence during training, and what is possible."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 5), layout="constrained", dpi=120)
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        line = np.array([best(beta) for beta in np.geomspace(0.05, 50, 200)])
        axes.plot(line[:, 1], line[:, 0], color="0.3", label="pi*, computed")
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
