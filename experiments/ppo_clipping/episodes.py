"""Episodes of trained policies, for films: the median seed of each setting, from the same start."""

import dataclasses
import pathlib
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jrl import grid, rollout, video
from jrl.algos import ppo
from jrl.envs.environment import Environment
from jrl.envs.mujoco import physics
from jrl.envs.mujoco.physics import Readings
from jrl.envs.mujoco.task import Engine
from jrl.experiment import Experiment
from jrl.run_directory import RunDirectory, UsageError
from ppo_clipping import settings

__all__ = ["play"]

STEPS = 1000
"""After which an episode is left."""


def play(
    experiment: Experiment,
    directory: pathlib.Path,
    name: str,
    wanted: tuple[str, ...],
    engine: Engine = "auto",
) -> list[video.Episode]:
    """Plays one episode of each wanted setting by the newest checkpoint of `directory`.

    A setting's score is the mean of its seeds' at that checkpoint; the seed that plays has the
    median one. Raises UsageError if there is no checkpoint yet, or no such setting.
    """
    if not (directory / "checkpoints").exists():
        raise UsageError(f"environment: {name} has no checkpoint yet, wait or choose another")
    members, plan = experiment.restore(directory)
    step = int(members.point[0]) * plan.steps_per_point
    scores: dict[str, dict[int, float]] = {label: {} for label, _ in plan.settings}
    rows = [row for row in RunDirectory(directory).rows() if row["step"] == step]
    for member, row in enumerate(rows):
        if (score := row["means"]["eval/return"]) is not None:
            scores[row["setting"]][member] = score
    means = {label: statistics.fmean(x.values()) if x else None for label, x in scores.items()}
    env = settings.environment(name, engine)
    body = _body(name)
    act = _player(env, experiment.config, body)
    hps = grid.stack(experiment.hyper, plan.settings, experiment.seeds)
    episodes = []
    for label, setting in video.choose(means, wanted).items():
        chosen = sorted(scores[setting], key=lambda member: scores[setting][member])
        if not chosen:
            raise UsageError(f"settings: no episode of {setting} has ended yet, choose another")
        median = chosen[(len(chosen) - 1) // 2]
        learner, hp = jax.tree.map(lambda x, i=median: x[i], (members.state.train, hps))
        qpos, rewards = act(learner, hp)
        score = statistics.fmean(scores[setting].values())
        episodes.append(video.Episode(name, label, score, body.mj, qpos, rewards, body.dt))
    return episodes


def _body(name: str) -> physics.Model:
    task = settings.module(name).TASK
    return physics.load(task.xml, task.fields, task.frame_skip)


def _player(env: Environment, config: ppo.Config, body: physics.Model):
    """Makes (learner, hp) -> (positions after each step, rewards) of one episode."""
    single = dataclasses.replace(config, num_envs=1, minibatches=1, microbatches=1)
    setup, params = rollout.setup(env, single), env.default_params

    @jax.jit
    def step(learner, hp, key, carry, observation, first, state):
        policy = ppo.player(setup, learner, hp)
        action_key, env_key = jax.random.split(key)
        action, carry, _ = policy(action_key, carry, observation[None], first[None])
        observation, state, reward, terminated, truncated, _ = env.step(
            env_key, state, action[0], params
        )
        qpos = Readings(state.physics, body.layout)["qpos"]
        return (carry, observation, state, terminated | truncated), (qpos, reward)

    def act(learner: Any, hp: ppo.Hyper):
        reset_key, root = jax.random.split(jax.random.key(0))
        observation, state = jax.jit(env.reset)(reset_key, params)
        carry, done, steps = setup.network.carry(1), False, []
        while not done and len(steps) < STEPS:
            key, first = jax.random.fold_in(root, len(steps)), jnp.bool_(not steps)
            (carry, observation, state, done), taken = step(
                learner, hp, key, carry, observation, first, state
            )
            steps.append(taken)
        qpos, rewards = zip(*jax.device_get(steps), strict=True)
        return np.stack(qpos), np.array(rewards, float)

    return act
