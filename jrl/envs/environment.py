"""The environment contract: four pure functions and the default parameters.

It is that of gymnax 1.x, so its environments work here unwrapped and ours work there:

    reset(key, params) -> (observation, state)
    step(key, state, action, params)
        -> (observation, state, reward, terminated, truncated, info)

`terminated` ends the task: nothing follows, the value of what comes next is zero.
`truncated` only ends the episode: the value of the final observation is bootstrapped.
An environment as made by its file does not reset itself; `wrappers.auto_reset` does that.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jrl.types import PyTree

__all__ = ["Environment", "Step"]

Step = tuple[Any, Any, Any, Any, Any, dict[str, Any]]
"""(observation, state, reward f32, terminated bool, truncated bool, info)."""


class Environment(NamedTuple):
    """One environment: functions of single states, to be `vmap`ped by whoever wants many.

    `params` is a pytree of arrays, so an environment can also be `vmap`ped over its
    parameters. Calling `reset` or `step` consumes the key.
    """

    name: str
    reset: Callable[..., tuple[Any, Any]]
    step: Callable[..., Step]
    observation_space: Callable[..., Any]
    action_space: Callable[..., Any]
    default_params: PyTree

    @property
    def num_actions(self) -> int:
        """The number of actions of an environment with a discrete action space."""
        return self.action_space(self.default_params).n
