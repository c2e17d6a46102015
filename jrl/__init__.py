"""jrl: functional reinforcement learning in JAX, from bandits to reasoning language models.

Modules load when they are first used: `import jrl` alone costs nothing.

>>> import jax.numpy as jnp
>>> import jrl
>>> jrl.losses.clipped_surrogate(jnp.log(jnp.array([1.5])), jnp.ones(1), 0.2)
Array([-1.2], dtype=float32)
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jrl import (
        algos,
        checkpoint,
        distributions,
        envs,
        experiment,
        loop,
        losses,
        metrics,
        networks,
        rollout,
        tabular,
        train,
    )

__all__ = [
    "algos",
    "checkpoint",
    "distributions",
    "envs",
    "experiment",
    "loop",
    "losses",
    "metrics",
    "networks",
    "rollout",
    "tabular",
    "train",
]

__version__ = "0.1.0"


def __getattr__(name: str):
    if name in __all__:
        return importlib.import_module(f"jrl.{name}")
    raise AttributeError(f"module 'jrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
