"""Preferences: pairs of answers, compared by a reward that is known.

    P(chosen > rejected | x) = sigmoid(r(x, chosen) - r(x, rejected))

The prompt names some letters; an answer is worth more, the more of its letters are among them. A
reward model that is fitted to the pairs can be held against `reward`, and so can a policy.
"""

import dataclasses
import os

import numpy as np

from jrl.data.schemas import Record
from jrl.data.tasks import task
from jrl.data.tasks.task import Sizes, Task
from jrl.data.tfds import TfdsSource

__all__ = ["Config", "TASK", "example", "load", "reward"]


@dataclasses.dataclass(frozen=True)
class Config(Sizes):
    """Which prompts and answers there are, and how far apart their rewards."""

    alphabet: str = "abcdefgh"
    prompt_length: int = 3
    """Letters of a prompt, all different."""
    answer_length: int = 8
    scale: float = 4.0
    """The reward of an answer with wanted letters alone; larger means less noise in the choices."""

    def __post_init__(self):
        if len(set(self.alphabet)) < len(self.alphabet) or "=" in self.alphabet:
            raise ValueError(f"config.alphabet must be different letters, got {self.alphabet!r}")
        if not 1 <= self.prompt_length < len(self.alphabet):
            raise ValueError(
                f"config.prompt_length must be from 1 to {len(self.alphabet) - 1}, "
                f"fewer than the alphabet, got {self.prompt_length}"
            )


def reward(prompt: str, answer: str, config: Config | None = None) -> float:
    """The reward that the pairs are compared by.

        r(x, y) = scale / n sum_t 1{y_t in x},    n = answer_length

    Source: none, a definition. Args: `prompt` "bad="; `answer` of any length (letters after the
    first n do not count). Returns: a number from 0 to `config.scale`.

    >>> reward("bad=", "abadface")
    2.5
    """
    config = config or Config()
    wanted = set(prompt.split("=")[0])
    answer = answer[: config.answer_length]
    return config.scale * sum(letter in wanted for letter in answer) / config.answer_length


def example(rng: np.random.Generator, config: Config) -> Record:
    """Draws a prompt, two answers and which of them is chosen.

    Source of the model: Bradley & Terry 1952, https://doi.org/10.2307/2334029. A letter of an
    answer is one of the prompt's with a probability that is drawn for each answer, so that rewards
    of all sizes occur.
    Returns: `prompt`, `chosen`, `rejected`, and their rewards in `chosen_reward` and
    `rejected_reward`.

    >>> record = example(np.random.default_rng(0), Config())
    >>> record["prompt"], record["chosen"], record["rejected"], record["chosen_reward"]
    ('ced=', 'dadedabh', 'eadddacd', 2.0)
    """
    letters = rng.permutation(list(config.alphabet)).tolist()
    prompt = "".join(letters[: config.prompt_length]) + "="
    answers = [_answer(rng, letters, config) for _ in range(2)]
    rewards = [reward(prompt, answer, config) for answer in answers]
    first = rng.random() < 1 / (1 + np.exp(rewards[1] - rewards[0]))
    chosen, rejected = (0, 1) if first else (1, 0)
    return {
        "prompt": prompt,
        "chosen": answers[chosen],
        "rejected": answers[rejected],
        "chosen_reward": rewards[chosen],
        "rejected_reward": rewards[rejected],
    }


COLUMNS = (
    ("prompt", str),
    ("chosen", str),
    ("rejected", str),
    ("chosen_reward", float),
    ("rejected_reward", float),
)

TASK = Task("preferences", "1.0.0", COLUMNS, example)


def load(
    config: Config | None = None,
    split: str = "train",
    directory: str | os.PathLike[str] | None = None,
) -> TfdsSource:
    """Opens a split, prepared on first use; arguments as in `tasks.task.load`.

    >>> import tempfile
    >>> source = load(Config(train=3, test=1), directory=tempfile.mkdtemp())
    >>> len(source), source.schema
    (3, 'preference')
    """
    return task.load(TASK, config or Config(), split, directory)


def _answer(rng: np.random.Generator, letters: list[str], config: Config) -> str:
    wanted = rng.random(config.answer_length) < rng.random()
    inside = rng.integers(config.prompt_length, size=config.answer_length)
    outside = rng.integers(config.prompt_length, len(letters), size=config.answer_length)
    return "".join(letters[n] for n in np.where(wanted, inside, outside))
