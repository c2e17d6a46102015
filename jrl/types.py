"""Array shapes and function types shared by every room of the house."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

__all__ = [
    "Algorithm",
    "Array",
    "Bool",
    "Float",
    "Int",
    "Key",
    "Leaf",
    "Metrics",
    "Params",
    "PyTree",
    "Scalar",
    "Updater",
    "check_sizes",
]

Key = PRNGKeyArray
PyTree = Any
Params = PyTree
Leaf = Any
"""Annotation of a struct's field: a number in its default, any array once traced or batched."""

Scalar = Float[Array, ""] | float
"""A floating-point number: a Python float, or a traced one (a leaf of a `Hyper`)."""

Metrics = dict[str, tuple[Any, Any]]
"""Name -> (sum, weight). The mean is sum / weight, divided once, after every reduction."""


class Algorithm(NamedTuple):
    """What a driver needs of a learning algorithm: pure functions and one number.

    `init(key, hp) -> state`, `iterate(state, hp) -> (state, metrics)` and
    `evaluate(state, key, hp) -> metrics`, with metrics as name -> (sum, weight). A state holds
    arrays only, so it stacks into populations, shards and checkpoints as it is.
    """

    init: Callable[[Key, PyTree], PyTree]
    iterate: Callable[[PyTree, PyTree], tuple[PyTree, Metrics]]
    evaluate: Callable[[PyTree, Key, PyTree], Metrics]
    steps_per_iteration: int
    """Environment steps (or examples) that one call of `iterate` consumes."""


class Updater(NamedTuple):
    """What a driver needs of an algorithm whose examples come from outside the program.

    From files, or from a sampler and reward functions. All are pure:
    `init(key, params, frozen, hp) -> state`; `prepare(state, batch, hp) -> (batch, metrics)` adds
    the columns that couple examples or need the policy as it was; `update(state, batch, hp) ->
    (state, metrics)`; `evaluate(state, batch, hp) -> metrics`; `policy(state)` returns the
    parameters of the whole model, to sample from or to save.
    """

    init: Callable[..., PyTree]
    prepare: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, Metrics]]
    update: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, Metrics]]
    evaluate: Callable[[PyTree, PyTree, PyTree], Metrics]
    policy: Callable[[PyTree], Params]


def check_sizes(name: str, config: Any) -> None:
    """Raises ValueError unless every integer of a dataclass is positive.

    Fields whose metadata say `"may_be_zero"` may be zero: `field(metadata={"may_be_zero": True})`.

    >>> @dataclasses.dataclass
    ... class Config:
    ...     num_envs: int = 0
    >>> check_sizes("config", Config())
    Traceback (most recent call last):
    ValueError: config.num_envs must be at least 1, got 0
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        least = 0 if field.metadata.get("may_be_zero") else 1
        sizes = value if isinstance(value, tuple) else (value,)
        for size in sizes:
            if isinstance(size, int) and not isinstance(size, bool) and size < least:
                raise ValueError(f"{name}.{field.name} must be at least {least}, got {size}")
