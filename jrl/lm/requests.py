"""What is asked of a sampler and what it gives back, on the host: checked lists into plain arrays.

Axes: Q requests that a sampler knows at once, S positions of its cache, E stop ids of a request.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import struct

from jrl.types import Leaf

__all__ = ["Completion", "Requests", "Settings", "check", "pack"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How one completion is drawn; no value of these compiles anything anew."""

    max_new_tokens: int = 128
    """The most tokens of the completion, the end of sequence included."""
    temperature: float = 1.0
    """What logits are divided by; 0 takes the most probable token."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 for all."""
    top_p: float = 1.0
    """Then keep the most probable ones that together have this probability; 1 for all."""
    min_p: float = 0.0
    """Then keep those with this share of the largest probability; 0 for all."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the completion, kept as its last one: all ends of sequence there are."""


class Completion(NamedTuple):
    """What came of one request; arrays of numpy with one element per token."""

    request: int
    """Its number: the place of its prompt in the list, or what the caller gave."""
    tokens: np.ndarray
    """Ids, int32, with the stop id that ended it."""
    log_probs: np.ndarray
    """Under the distribution that each was drawn from, float32; 0 at temperature 0."""
    tempered_log_probs: np.ndarray
    """At the temperature but before top-k, top-p and min-p: what a trainer computes."""
    raw_log_probs: np.ndarray
    """Under the model at temperature 1."""
    versions: np.ndarray
    """Which weights each token was drawn with, int32."""
    finish: str
    """stop, after a stop id, or length, after the most tokens that were allowed."""


class Requests(struct.PyTreeNode):
    """Requests as arrays; a token's index along S is its position in the text."""

    id_Q: Leaf
    """Number of the request, which its random numbers depend on; -1 where there is none."""
    tokens_QxS: Leaf
    """The prompt, later followed by the completion."""
    prompt_Q: Leaf
    """Tokens of the prompt."""
    limit_Q: Leaf
    """The most tokens of prompt and completion together."""
    temperature_Q: Leaf
    top_k_Q: Leaf
    top_p_Q: Leaf
    min_p_Q: Leaf
    stop_QxE: Leaf
    """Stop ids, then -1."""


def check(
    prompts: Sequence[Any], settings: Sequence[Settings], vocab_size: int, length: int, stops: int
) -> None:
    """Raises ValueError for the first request that a sampler could not serve.

    `length` is that of the cache, `stops` the most stop ids of a request.

    >>> check([[1, 2], []], [Settings()] * 2, 256, 512, 4)
    Traceback (most recent call last):
    ValueError: prompts[1]: empty, begin it with a token, for example the beginning of sequence
    """
    for i, (prompt, chosen) in enumerate(zip(prompts, settings, strict=True)):
        problem = _prompt_problem(np.asarray(prompt), vocab_size, length)
        problem = problem or _settings_problem(chosen, vocab_size, stops)
        if problem is None and len(prompt) + chosen.max_new_tokens > length:
            problem = (
                f"{len(prompt)} tokens and max_new_tokens={chosen.max_new_tokens} do not fit into "
                f"the cache of length={length}"
            )
        if problem is not None:
            raise ValueError(f"prompts[{i}]: {problem}")


def _prompt_problem(prompt: np.ndarray, vocab_size: int, length: int) -> str | None:
    if prompt.ndim != 1:
        return f"must be a list of token ids, got an array of shape {prompt.shape}"
    if prompt.size == 0:
        return "empty, begin it with a token, for example the beginning of sequence"
    if not np.issubdtype(prompt.dtype, np.integer):
        return f"must be integer token ids, got {prompt.dtype}"
    if prompt.size >= length:
        return f"{prompt.size} tokens leave no room in the cache of length={length}"
    if prompt.min() < 0 or prompt.max() >= vocab_size:
        bad = prompt[(prompt < 0) | (prompt >= vocab_size)][0]
        return f"token id {bad} is outside the vocabulary of {vocab_size}"
    return None


def _settings_problem(settings: Settings, vocab_size: int, stops: int) -> str | None:
    fields = {
        "max_new_tokens": (settings.max_new_tokens >= 1, "at least 1"),
        "temperature": (0 <= settings.temperature < float("inf"), "at least 0 and finite"),
        "top_k": (settings.top_k >= 0, "at least 0 (0 for all tokens)"),
        "top_p": (0 < settings.top_p <= 1, "above 0 and at most 1 (1 for all tokens)"),
        "min_p": (0 <= settings.min_p <= 1, "between 0 and 1 (0 for all tokens)"),
        "stop_ids": (len(settings.stop_ids) <= stops, f"at most {stops}, config.stops"),
    }
    for name, (fits, range_) in fields.items():
        if not fits:
            return f"settings.{name} must be {range_}, got {getattr(settings, name)}"
    for stop in settings.stop_ids:
        if not 0 <= stop < vocab_size:
            return f"settings.stop_ids has {stop}, outside the vocabulary of {vocab_size}"
    return None


def pack(
    prompts: Sequence[Any],
    settings: Sequence[Settings],
    ids: Sequence[int],
    size: int,
    length: int,
    stops: int,
) -> Requests:
    """Makes arrays of `size` rows, of which the first ones are these requests.

    >>> pack([[5, 6]], [Settings(max_new_tokens=3)], [0], 2, 6, 1).limit_Q
    array([5, 0], dtype=int32)
    """
    rows = len(prompts)

    def column(values, dtype):
        filled = np.zeros(size, dtype)
        filled[:rows] = values
        return filled

    tokens, stop = np.zeros((size, length), np.int32), np.full((size, stops), -1, np.int32)
    for row, (prompt, chosen) in enumerate(zip(prompts, settings, strict=True)):
        tokens[row, : len(prompt)] = prompt
        stop[row, : len(chosen.stop_ids)] = chosen.stop_ids
    numbers = np.full(size, -1, np.int32)
    numbers[:rows] = ids
    sizes = np.array([len(prompt) for prompt in prompts], np.int32)
    return Requests(
        id_Q=numbers,
        tokens_QxS=tokens,
        prompt_Q=column(sizes, np.int32),
        limit_Q=column(sizes + np.array([s.max_new_tokens for s in settings]), np.int32),
        temperature_Q=column([s.temperature for s in settings], np.float32),
        top_k_Q=column([s.top_k for s in settings], np.int32),
        top_p_Q=column([s.top_p for s in settings], np.float32),
        min_p_Q=column([s.min_p for s in settings], np.float32),
        stop_QxE=stop,
    )
