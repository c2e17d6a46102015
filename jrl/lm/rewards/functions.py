r"""Rewards that are computed from text: plain functions of a prompt and a completion.

    reward(prompt, completion, column, ...) -> float

Behind the first two come columns of the data set, by name: a function gets those that its
signature asks for, or all of them if it ends with `**columns`. Settings are keywords that
`functools.partial` binds. A trained reward model is no such function: it runs on the device, on
token ids, and its scores are added to these as arrays.
"""

import dataclasses
import functools
import inspect
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from jrl.lm.rewards import answers

__all__ = [
    "Reward",
    "Weighted",
    "arithmetic",
    "check_columns",
    "countdown",
    "exact_match",
    "format_match",
    "name_of",
    "normalize",
    "number_match",
    "overlong_penalty",
    "select_columns",
    "target_length",
    "think_answer",
    "weighted",
]

Reward = Callable[..., float]
"""(prompt, completion, **columns) -> float, or what `float` takes."""


def normalize(text: str) -> str:
    """Makes spellings of one answer equal: case, width, space, and punctuation around it.

    >>> normalize('  "New  York." ')
    'new york'
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.split()).strip(string.punctuation + string.whitespace + "“”‘’„«»…")


def exact_match(prompt: Any, completion: str, answer: str | Sequence[str]) -> float:
    """1 if the completion's final answer, normalised, is the answer or one of them, else 0.

    The final answer is what is marked as such (`jrl.lm.rewards.answers.final_answer`), the whole
    completion where nothing is.

    >>> exact_match("Capital of France?", "<answer>Paris.</answer>", answer="paris")
    1.0
    """
    marked = answers.final_answer(completion)
    said = normalize(completion if marked is None else marked)
    accepted = [answer] if isinstance(answer, str) else answer
    return float(said in map(normalize, accepted))


def number_match(
    prompt: Any,
    completion: str,
    answer: str | int | float | Fraction,
    marked: bool = False,
    tolerance: float = 0.0,
) -> float:
    r"""1 if the completion's last number is the answer's, else 0.

        |x - y| <= tolerance |y|

    Source: the answers of GSM8K, Cobbe et al. 2021, https://arxiv.org/abs/2110.14168, and of MATH,
    Hendrycks et al. 2021, https://arxiv.org/abs/2103.03874.
    Args: `answer`, a number, or a text that ends with one (a whole solution of GSM8K); `marked`,
    whether the completion must mark its answer (`####`, `\boxed{}`, `<answer>`); `tolerance`.
    Raises: ValueError if there is no number in `answer`.
    Conventions: numbers are read as `extract_number` does and compared exactly. Where one of the
    two has a percent sign both readings count: `50%` is 50, and 0.5.

    >>> number_match("", r"It is \boxed{\frac{3}{2}}.", answer="2 - 0.5 = 1.5\n#### 1.5")
    1.0
    """
    right, right_percent = answers.read_number(str(answer))
    if right is None:
        raise ValueError(f"answer: {answer!r} has no number")
    said, said_percent = answers.read_number(completion, marked)
    if said is None:
        return 0.0
    readings = [said]
    if said_percent and not right_percent:
        readings.append(said / 100)
    if right_percent and not said_percent:
        readings.append(said * 100)
    allowed = Fraction(tolerance) * abs(right)
    return float(any(abs(reading - right) <= allowed for reading in readings))


def arithmetic(prompt: Any, completion: str, expression: str, marked: bool = False) -> float:
    """1 if the completion's last number is the value of the expression, else 0.

    Raises: ValueError if the expression cannot be evaluated (`jrl.lm.rewards.answers.evaluate`).

    >>> arithmetic("(7 - 1) / 4 = ", "1.5", expression="(7 - 1) / 4")
    1.0
    """
    return float(answers.extract_number(completion, marked) == answers.evaluate(expression))


def countdown(
    prompt: Any,
    completion: str,
    numbers: Sequence[int],
    target: int | float,
    use_all: bool = True,
) -> float:
    """1 if the completion makes the target of the given numbers with + - * /, else 0.

    Each number may be used once, and must be if `use_all`. The expression is the marked answer,
    or the last line where nothing is marked; what follows an `=` in it is not read.
    Source: the task of Gandhi et al. 2024, https://arxiv.org/abs/2404.03683; `use_all` as in its
    version for reinforcement learning, https://github.com/Jiayi-Pan/TinyZero.

    >>> countdown("", "<answer>(6 - 1) * 5</answer>", numbers=[1, 5, 6], target=25)
    1.0
    """
    said = answers.final_answer(completion)
    if said is None:
        said = (completion.strip().splitlines() or [""])[-1]
    said = said.partition("=")[0]
    try:
        used = Counter(answers.integers(said))
        value = answers.evaluate(said)
    except ValueError:
        return 0.0
    given = Counter(int(number) for number in numbers)
    fits = used == given if use_all else used <= given
    return float(fits and value == Fraction(str(target)))


def format_match(prompt: Any, completion: str, pattern: str) -> float:
    """1 if a regular expression matches the whole completion (`.` also a line break), else 0.

    >>> format_match("", "Answer: 12", pattern=r"Answer: [0-9]+")
    1.0
    """
    return float(re.fullmatch(pattern, completion, re.DOTALL) is not None)


def think_answer(prompt: Any, completion: str, opened: bool = False) -> float:
    """1 if the completion is `<think>...</think><answer>...</answer>` and no more, else 0.

    Source: Guo et al. 2025 (DeepSeek-R1), section 2.2.2, https://arxiv.org/abs/2501.12948.
    Args: `opened`, whether the prompt ends with `<think>` already.

    >>> think_answer("", "<think>3 * 4</think> <answer>12</answer>")
    1.0
    """
    text = ("<think>" if opened else "") + completion.strip()
    tags = re.findall(r"</?(?:think|answer)>", text)
    return float(
        tags == ["<think>", "</think>", "<answer>", "</answer>"]
        and text.startswith("<think>")
        and text.endswith("</answer>")
        and re.search(r"</think>\s*<answer>", text) is not None
    )


def overlong_penalty(
    prompt: Any, completion: Any, completion_ids: Sequence[int], limit: int, buffer: int
) -> float:
    """0 up to `limit - buffer` tokens, then falling to -1 at `limit` and beyond.

        r = -clip((|y| - (limit - buffer)) / buffer, 0, 1)

    Source: Yu et al. 2025 (DAPO), eq. 13, https://arxiv.org/abs/2503.14476.
    Args: `completion_ids`, the tokens that were drawn, without padding; `limit` > 0;
    0 < `buffer` <= `limit`.
    Raises: ValueError for another `buffer`.

    >>> overlong_penalty("", "", completion_ids=[7] * 90, limit=100, buffer=20)
    -0.5
    """
    if not 0 < buffer <= limit:
        raise ValueError(f"buffer: must be in 1 .. limit={limit}, got {buffer}")
    return -min(max(len(completion_ids) - (limit - buffer), 0) / buffer, 1.0)


def target_length(
    prompt: Any, completion: Any, completion_ids: Sequence[int], target: int, scale: float
) -> float:
    """Minus the distance of the number of tokens to a wanted one, `-scale | |y| - target |`.

    Source: Aggarwal & Welleck 2025 (L1), the length term of
    L1-Exact, https://arxiv.org/abs/2503.04697.
    Args: `completion_ids`, the tokens that were drawn, without padding; `target` is a column or
    bound; `scale` >= 0.

    >>> target_length("", "", completion_ids=[7] * 90, target=100, scale=0.25)
    -2.5
    """
    return -scale * abs(len(completion_ids) - target)


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A weighted sum of rewards, itself a reward; a `Scorer` runs and counts each by itself."""

    weights: Mapping[Reward, int | float]

    def __call__(self, prompt: Any, completion: Any, **columns: Any) -> float:
        """Returns the sum of `weight * reward` over the functions."""
        return sum(
            weight * float(function(prompt, completion, **select_columns(function, columns)))
            for function, weight in self.weights.items()
        )


def weighted(weights: Mapping[Reward, int | float]) -> Weighted:
    """Sums rewards with weights: `sum_i w_i r_i(prompt, completion)`.

    Raises: ValueError if there are none.

    >>> reward = weighted({number_match: 1.0, think_answer: 0.1})
    >>> reward("2 + 2", "<think>...</think><answer>4</answer>", answer=4)
    1.1
    """
    if not weights:
        raise ValueError("weights: empty, give at least one reward function")
    return Weighted(dict(weights))


def select_columns(function: Reward, columns: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the columns that a reward function asks for.

    Raises: ValueError that names a column which it needs and which is not there.

    >>> select_columns(exact_match, {"answer": "4", "id": 17})
    {'answer': '4'}
    """
    wanted = list(inspect.signature(function).parameters.values())[2:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in wanted):
        return dict(columns)
    for parameter in wanted:
        if parameter.default is parameter.empty and parameter.name not in columns:
            raise ValueError(
                f"{name_of(function)}: needs the column {parameter.name!r}, "
                f"there are {sorted(columns) or 'none'}"
            )
    return {p.name: columns[p.name] for p in wanted if p.name in columns}


def check_columns(reward: Reward, columns: Iterable[str]) -> None:
    """Raises ValueError if a reward, or one of its parts, needs a column that is not among these.

    >>> check_columns(exact_match, ["answer"])
    """
    for function in reward.weights if isinstance(reward, Weighted) else [reward]:
        select_columns(function, dict.fromkeys(columns))


def name_of(function: Reward) -> str:
    """Returns what metrics and errors call a reward function.

    >>> name_of(functools.partial(number_match, marked=True))
    'number_match'
    """
    if isinstance(function, functools.partial):
        return name_of(function.func)
    return getattr(function, "__name__", type(function).__name__)
