"""Rewards of completions: plain functions here, the processes that run them in `scorer`.

Workers import this package, so it needs nothing but the standard library.
"""

from jrl.lm.rewards.answers import evaluate, extract_number, final_answer, last_boxed
from jrl.lm.rewards.functions import (
    Reward,
    Weighted,
    arithmetic,
    check_columns,
    countdown,
    exact_match,
    format_match,
    normalize,
    number_match,
    overlong_penalty,
    target_length,
    think_answer,
    weighted,
)

__all__ = [
    "Reward",
    "Weighted",
    "arithmetic",
    "check_columns",
    "countdown",
    "evaluate",
    "exact_match",
    "extract_number",
    "final_answer",
    "format_match",
    "last_boxed",
    "normalize",
    "number_match",
    "overlong_penalty",
    "target_length",
    "think_answer",
    "weighted",
]
