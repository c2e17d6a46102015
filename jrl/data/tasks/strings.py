"""Strings: a word to be reversed or sorted, one letter at a time.

reverse cab= -> bac        sort cab= -> abc
"""

import dataclasses
import os

import numpy as np

from jrl.data.schemas import Record
from jrl.data.tasks import task
from jrl.data.tasks.task import Sizes, Task
from jrl.data.tfds import TfdsSource

__all__ = ["Config", "TASK", "example", "load"]

OPERATIONS = {"reverse": lambda word: word[::-1], "sort": lambda word: "".join(sorted(word))}


@dataclasses.dataclass(frozen=True)
class Config(Sizes):
    """Which words there are, and what is done to them."""

    operations: tuple[str, ...] = ("reverse", "sort")
    alphabet: str = "abcdefghijklmnopqrstuvwxyz"
    min_length: int = 2
    max_length: int = 8

    def __post_init__(self):
        if not self.operations or set(self.operations) - set(OPERATIONS):
            raise ValueError(
                f"config.operations must be some of {', '.join(OPERATIONS)}, got {self.operations}"
            )
        if not self.alphabet or set(self.alphabet) & set(" ="):
            raise ValueError(f"config.alphabet must be letters, got {self.alphabet!r}")
        if not 1 <= self.min_length <= self.max_length:
            raise ValueError(
                "config.min_length and max_length must be 1 <= min <= max, "
                f"got {self.min_length} and {self.max_length}"
            )


def example(rng: np.random.Generator, config: Config) -> Record:
    """Draws one word and what is to be done to it.

    Returns: `prompt` "reverse cab=" and `completion` "bac", which is also `answer`, for rewards.
    Sorted is by code point.

    >>> example(np.random.default_rng(0), Config(max_length=4))
    {'prompt': 'sort nhi=', 'completion': 'hin', 'answer': 'hin'}
    """
    operation = config.operations[rng.integers(len(config.operations))]
    size = rng.integers(config.min_length, config.max_length + 1)
    word = "".join(config.alphabet[n] for n in rng.integers(len(config.alphabet), size=size))
    answer = OPERATIONS[operation](word)
    return {"prompt": f"{operation} {word}=", "completion": answer, "answer": answer}


COLUMNS = (("prompt", str), ("completion", str), ("answer", str))

TASK = Task("strings", "1.0.0", COLUMNS, example)


def load(
    config: Config | None = None,
    split: str = "train",
    directory: str | os.PathLike[str] | None = None,
) -> TfdsSource:
    """Opens a split, prepared on first use; arguments as in `tasks.task.load`.

    >>> import tempfile
    >>> source = load(Config(train=3, test=1), directory=tempfile.mkdtemp())
    >>> len(source), source.schema
    (3, 'completion')
    """
    return task.load(TASK, config or Config(), split, directory)
