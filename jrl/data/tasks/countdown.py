"""Countdown: make a target of some numbers, each used exactly once.

    6,9,3=36: -> (9-3)*6

Rewards need `numbers` and `target`, which are columns; the completion is one of the solutions.
"""

import dataclasses
import os

import numpy as np

from jrl.data.schemas import Record
from jrl.data.tasks import task
from jrl.data.tasks.task import Sizes, Task
from jrl.data.tfds import TfdsSource

__all__ = ["Config", "TASK", "example", "load"]

LEVELS = {"+": 1, "-": 1, "*": 2, "/": 2}
NUMBER = 3
"""The level of an expression is how strongly it binds; a number's is the highest."""


@dataclasses.dataclass(frozen=True)
class Config(Sizes):
    """Which puzzles there are."""

    operations: str = "+-*/"
    """Some of `+-*/`; in a solution no division leaves a remainder."""
    min_numbers: int = 3
    max_numbers: int = 4
    largest_number: int = 20
    largest_target: int = 100
    prompt: str = "{numbers}={target}:"
    """With `{numbers}` (joined by commas) and `{target}`."""

    def __post_init__(self):
        if not self.operations or set(self.operations) - set(LEVELS):
            raise ValueError(f"config.operations must be some of +-*/, got {self.operations!r}")
        if not 2 <= self.min_numbers <= self.max_numbers:
            raise ValueError(
                "config.min_numbers and max_numbers must be 2 <= min <= max, "
                f"got {self.min_numbers} and {self.max_numbers}"
            )
        if "{numbers}" not in self.prompt or "{target}" not in self.prompt:
            raise ValueError(f"config.prompt must have {{numbers}} and {{target}}: {self.prompt!r}")


def example(rng: np.random.Generator, config: Config) -> Record:
    """Draws one puzzle that has a solution: random numbers, joined by random operations.

    Source: the puzzle of Pan et al. 2025, https://github.com/Jiayi-Pan/TinyZero, whose prompts and
    ranges are a matter of `config`. Intermediate results are natural numbers, as in the game show.
    Raises: ValueError when the configuration has no such puzzle.
    Returns: `prompt`; `completion`: an expression with each number once and no parentheses that
    it does not need; `numbers`, `target`: for the reward.

    >>> example(np.random.default_rng(2), Config())
    {'prompt': '6,3,6,9=12:', 'completion': '6*(9+3)/6', 'numbers': [6, 3, 6, 9], 'target': 12}
    """
    for _ in range(task.MAX_DRAWS):
        count = rng.integers(config.min_numbers, config.max_numbers + 1)
        numbers = rng.integers(1, config.largest_number + 1, size=count).tolist()
        target, expression = _solution(rng, numbers, config.operations)
        if 1 <= target <= config.largest_target:
            break
    else:
        raise ValueError(
            f"none of {task.MAX_DRAWS} random expressions of config.operations="
            f"{config.operations!r} is at most largest_target={config.largest_target}: raise it"
        )
    joined = ",".join(map(str, numbers))
    prompt = config.prompt.replace("{numbers}", joined).replace("{target}", str(target))
    return {"prompt": prompt, "completion": expression, "numbers": numbers, "target": target}


COLUMNS = (("prompt", str), ("completion", str), ("numbers", list), ("target", int))

TASK = Task("countdown", "1.0.0", COLUMNS, example)


def load(
    config: Config | None = None,
    split: str = "train",
    directory: str | os.PathLike[str] | None = None,
) -> TfdsSource:
    """Opens a split, prepared on first use; arguments as in `tasks.task.load`.

    >>> import tempfile
    >>> source = load(Config(train=3, test=1), directory=tempfile.mkdtemp())
    >>> len(source), sorted(source[0])
    (3, ['completion', 'numbers', 'prompt', 'target'])
    """
    return task.load(TASK, config or Config(), split, directory)


def _solution(rng: np.random.Generator, numbers: list[int], operations: str) -> tuple[int, str]:
    """Joins two random terms until one is left; (0, "") where no operation is possible."""
    terms = [(n, str(n), NUMBER) for n in numbers]
    while len(terms) > 1:
        left, right = (terms.pop(int(rng.integers(len(terms)))) for _ in range(2))
        results = {sign: _apply(left[0], sign, right[0]) for sign in operations}
        possible = [(sign, n) for sign, n in results.items() if n is not None]
        if not possible:
            return 0, ""
        sign, value = possible[rng.integers(len(possible))]
        level = LEVELS[sign]
        a = left[1] if left[2] >= level else f"({left[1]})"
        # What follows "-" and "/" binds to the left.
        closed = right[2] > level or (right[2] == level and sign in "+*")
        b = right[1] if closed else f"({right[1]})"
        terms.append((value, f"{a}{sign}{b}", level))
    return terms[0][0], terms[0][1]


def _apply(a: int, sign: str, b: int) -> int | None:
    if sign == "+":
        return a + b
    if sign == "*":
        return a * b
    if sign == "-":
        return a - b if a > b else None
    return a // b if a % b == 0 else None
