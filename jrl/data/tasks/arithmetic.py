"""Arithmetic: two numbers and an operation, with the result as the completion.

12+34= -> 46
"""

import dataclasses
import os

import numpy as np

from jrl.data.schemas import Record
from jrl.data.tasks import task
from jrl.data.tasks.task import Sizes, Task
from jrl.data.tfds import TfdsSource

__all__ = ["Config", "TASK", "example", "load"]


@dataclasses.dataclass(frozen=True)
class Config(Sizes):
    """Which sums there are."""

    operations: str = "+"
    """One or more of `+-*/`, drawn alike. Divisions leave no remainder."""
    min_digits: int = 1
    max_digits: int = 2
    """The number of digits of an operand (with `/`: of divisor and quotient) is drawn first."""

    def __post_init__(self):
        if not self.operations or set(self.operations) - set("+-*/"):
            raise ValueError(f"config.operations must be some of +-*/, got {self.operations!r}")
        if not 1 <= self.min_digits <= self.max_digits <= 18:
            raise ValueError(
                "config.min_digits and max_digits must be 1 <= min <= max <= 18, "
                f"got {self.min_digits} and {self.max_digits}"
            )


def example(rng: np.random.Generator, config: Config) -> Record:
    """Draws one sum.

    Returns: `prompt` "12+34=" and `completion` "46" ("-" is the sign of a negative number), and
    for rewards `expression` "12+34" and `answer` "46".

    >>> example(np.random.default_rng(0), Config(operations="-"))
    {'prompt': '67-34=', 'completion': '33', 'expression': '67-34', 'answer': '33'}
    """
    operation = config.operations[rng.integers(len(config.operations))]
    a, b = _number(rng, config), _number(rng, config)
    if operation == "/":
        b = max(b, 1)
        a, result = a * b, a
    else:
        result = {"+": a + b, "-": a - b, "*": a * b}[operation]
    expression, answer = f"{a}{operation}{b}", str(result)
    return {
        "prompt": f"{expression}=",
        "completion": answer,
        "expression": expression,
        "answer": answer,
    }


COLUMNS = (("prompt", str), ("completion", str), ("expression", str), ("answer", str))

TASK = Task("arithmetic", "1.0.0", COLUMNS, example)


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


def _number(rng: np.random.Generator, config: Config) -> int:
    digits = int(rng.integers(config.min_digits, config.max_digits + 1))
    # Of one digit, 0 is a number too.
    return int(rng.integers(10 ** (digits - 1) if digits > 1 else 0, 10**digits))
