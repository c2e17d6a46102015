"""What is compared: the eleven settings, the seven environments and what all of them share."""

import dataclasses
import importlib
import math
from typing import Any

from jrl import networks, rollout
from jrl.algos import ppo
from jrl.envs.environment import Environment
from jrl.envs.mujoco.task import Engine
from jrl.types import Algorithm

__all__ = [
    "CONFIG",
    "ENVIRONMENTS",
    "HYPER",
    "SETTINGS",
    "algorithm",
    "changes",
    "check",
    "environment",
    "network",
]

ENVIRONMENTS = {
    "InvertedPendulum": "inverted_pendulum",
    "HalfCheetah": "half_cheetah",
    "Reacher": "reacher",
    "Swimmer": "swimmer",
    "InvertedDoublePendulum": "inverted_double_pendulum",
    "Hopper": "hopper",
    "Walker2d": "walker2d",
}
"""Name -> module in `jrl.envs.mujoco`, in the order in which they are run."""

SETTINGS = {
    "none": {},
    **{f"clip{eps}": {"clip_eps": eps} for eps in (0.1, 0.2, 0.3)},
    **{
        f"akl{target}": {"kl_beta": 1.0, "kl_target": target, "kl_adapt": 1.0}
        for target in (0.003, 0.01, 0.03)
    },
    **{f"kl{beta}": {"kl_beta": float(beta)} for beta in (0.3, 1, 3, 10)},
}
"""Name -> what differs from `HYPER`: the rows of Table 1."""

CONFIG = ppo.Config(
    num_envs=1,
    num_steps=2048,
    epochs=10,
    minibatches=32,
    total_steps=1_000_000,
    hidden=(64, 64),
    normalize_observation=True,
    diagnostics=True,
    eval_episodes=100,
)

HYPER = ppo.Hyper(
    learning_rate=3e-4,
    gamma=0.99,
    gae_lambda=0.95,
    clip_eps=math.inf,
    value_coef=2.0,
    max_grad_norm=math.inf,
    adam_eps=1e-5,
    observation_clip=5.0,
    observation_floor=1e-2,
    observe_first=1.0,
    time_limit_ends=1.0,
)


def changes(*pairs: tuple[Any, Any]) -> list[str]:
    """Returns field=value of what differs between two configs or two hypers.

    >>> changes((ppo.Config(num_envs=2), ppo.Config()), (ppo.Hyper(), ppo.Hyper()))
    ['num_envs=2']
    """
    return [
        f"{field.name}={getattr(mine, field.name)}"
        for mine, base in pairs
        for field in dataclasses.fields(mine)
        if getattr(mine, field.name) != getattr(base, field.name)
    ]


def check(names: tuple[str, ...]) -> None:
    """Raises ValueError unless the names are environments, each once."""
    for name in names:
        if name not in ENVIRONMENTS:
            raise ValueError(f"environments: no {name!r}, choose from {', '.join(ENVIRONMENTS)}")
    if not names or len(set(names)) < len(names):
        raise ValueError("environments: name one or more, each once")


def module(name: str) -> Any:
    """Returns the module of one of the environments."""
    return importlib.import_module(f"jrl.envs.mujoco.{ENVIRONMENTS[name]}")


def environment(name: str, engine: Engine = "auto") -> Environment:
    """Makes one of the environments."""
    return module(name).make(engine)


def network(env: Environment, config: ppo.Config, initializer: str = "normc") -> networks.Network:
    """Makes the networks of policy and value, begun as ppo1 does."""
    spaces = (space(env.default_params) for space in (env.observation_space, env.action_space))
    return networks.actor_critic(
        *spaces, config.hidden, memory=config.memory, initializer=initializer
    )


def algorithm(env: Environment, config: ppo.Config, initializer: str = "normc") -> Algorithm:
    """Makes PPO whose evaluation is the mean return of the last 100 episodes of training."""
    trained = ppo.make(env, config, network=network(env, config, initializer))

    def evaluate(state: rollout.Learner, key, hp):
        return state.episodes.metrics()

    return trained._replace(evaluate=evaluate)
