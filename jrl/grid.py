"""The settings of an experiment: named ones, a grid of values, or both."""

import dataclasses
import itertools
import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jrl.types import PyTree

__all__ = ["Setting", "Sweep", "check", "floats", "settings", "stack"]

Setting = dict[str, float]
"""Field of a `Hyper` -> its value."""


def _parse(words: list[str]) -> dict[str, tuple[float, ...]]:
    sweep = {}
    for word in words:
        name, _, values = word.partition("=")
        try:
            sweep[name.replace("-", "_")] = tuple(float(x) for x in values.split(","))
        except ValueError:
            raise ValueError(f"{word}: write field=value,value,...") from None
    return sweep


Sweep = Annotated[
    dict[str, tuple[float, ...]],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="FIELD=V1,V2,...",
        instance_from_str=_parse,
        is_instance=lambda x: isinstance(x, dict),
        str_from_instance=lambda x: [f"{k}={','.join(map(str, v))}" for k, v in x.items()],
    ),
]
"""Field of the `Hyper` -> its values; several fields make a grid."""


def settings(
    sweep: dict[str, tuple[float, ...]], named: dict[str, Setting]
) -> tuple[tuple[str, Setting], ...]:
    """Returns (label, what it changes) of every named setting with every point of the sweep.

    >>> settings({"clip_eps": (0.1, 0.2)}, {})
    (('clip_eps=0.1', {'clip_eps': 0.1}), ('clip_eps=0.2', {'clip_eps': 0.2}))
    >>> settings({"anneal": (1.0,)}, {"none": {"clip_eps": 9.0}})
    (('none,anneal=1', {'clip_eps': 9.0, 'anneal': 1.0}),)
    """
    grid = [dict(zip(sweep, v, strict=True)) for v in itertools.product(*sweep.values())]
    pairs = itertools.product(named.items() if named else [("", {})], grid)
    return tuple(
        (",".join(filter(None, (name, _label(point)))) or "default", {**setting, **point})
        for (name, setting), point in pairs
    )


def _label(setting: Setting) -> str:
    # The short form unless it would make two settings look the same.
    short = {k: f"{v:g}" if float(f"{v:g}") == v else repr(v) for k, v in setting.items()}
    return ",".join(f"{name}={value}" for name, value in short.items())


def floats(hyper: Any) -> Any:
    """Makes every whole number of a `Hyper` a float: compiled code tells 1 from 1.0."""
    values = {field.name: getattr(hyper, field.name) for field in dataclasses.fields(hyper)}
    whole = {k: float(v) for k, v in values.items() if type(v) is int}
    return dataclasses.replace(hyper, **whole)


def check(hyper: Any, sweep: dict[str, tuple[float, ...]], named: dict[str, Setting]) -> None:
    """Raises ValueError naming the field unless every value fits a field of `hyper`."""
    for name in (names := [field.name for field in dataclasses.fields(hyper)]):
        if np.isnan(np.asarray(getattr(hyper, name), float)).any():
            raise ValueError(f"hyper.{name} is not a number")
    for name, values in sweep.items():
        if name not in names:
            raise ValueError(f"sweep: no hyper-parameter {name!r}, choose from {', '.join(names)}")
        if not values or len(set(values)) < len(values) or any(math.isnan(x) for x in values):
            raise ValueError(f"sweep: {name} needs one or more different numbers, got {values}")
    for label, setting in named.items():
        for name, value in setting.items():
            if name not in names:
                text = f"choose from {', '.join(names)}"
                raise ValueError(f"settings: {label}: no hyper-parameter {name!r}, {text}")
            if name in sweep:
                raise ValueError(f"sweep: {name} is set by the setting {label}: leave it out")
            if math.isnan(value):
                raise ValueError(f"settings: {label}: {name} is not a number")


def stack(hyper: Any, points: tuple[tuple[str, Setting], ...], seeds: int) -> PyTree:
    """Returns the `Hyper` of a population: of every setting, `seeds` times each, in that order."""
    columns = [dataclasses.replace(hyper, **setting) for _, setting in points]
    return jax.tree.map(
        lambda *x: jnp.repeat(jnp.stack([jnp.asarray(v) for v in x]), seeds, 0), *columns
    )
