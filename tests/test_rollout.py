"""Acting: a scan against a Python loop, exact returns, values on both sides of an episode's end."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jrl import networks, rng, rollout
from jrl.algos import ppo
from jrl.envs import cartpole, wrappers
from jrl.envs.chains import river_swim
from jrl.envs.environment import Environment
from jrl.envs.spaces import Box, Discrete
from jrl.envs.tabular import as_environment
from jrl.types import Leaf

KEY = jax.random.key(0)
T, N = 12, 4


class State(struct.PyTreeNode):
    time: Leaf
    length: Leaf


class Params(struct.PyTreeNode):
    max_steps_in_episode: Leaf = 9


def corridor():
    """Makes a walk of 2 to 6 steps, as drawn at its start, that pays t for action 1 at step t."""

    def observe(state):
        return jnp.stack([state.time, state.length]).astype(jnp.float32)

    def reset(key, params):
        state = State(jnp.int32(0), jax.random.randint(key, (), 2, 7))
        return observe(state), state

    def step(key, state, action, params):
        state = state.replace(time=state.time + 1)
        over = state.time >= state.length
        reward = (action * state.time).astype(jnp.float32)
        return observe(state), state, reward, over, jnp.bool_(False), {}

    def box(params):
        return Box(0.0, 6.0, (2,))

    return Environment("Corridor", reset, step, box, lambda params: Discrete(2), Params())


def counting(key, carry, observation, reset):
    """Remembers how often it acted since the reset, and acts at random."""
    carry = jnp.where(reset, 0, carry) + 1
    action = jax.random.bernoulli(key, 0.5, carry.shape).astype(jnp.int32)
    return action, carry, {"count": carry}


def always(action):
    return lambda key, carry, observation, reset: (jnp.full(reset.shape, action), carry, ())


def batch(env=None):
    return wrappers.vectorize(wrappers.episode_statistics(env or corridor()), N)


def test_unroll_equals_a_loop():
    env = batch()
    actor = first = rollout.start(KEY, env, env.default_params, jnp.zeros(N, jnp.int32))
    assert bool(actor.reset.all())
    unroll = jax.jit(rollout.unroll, static_argnums=(1, 3, 5))
    end, trajectory = unroll(KEY, env, env.default_params, counting, first, T)
    env_key, policy_key = jax.random.split(KEY)
    env_keys, policy_keys = jax.random.split(env_key, T), rng.batch_keys(policy_key, (T,))
    for t in range(T):
        action, carry, recorded = counting(
            policy_keys[t], actor.carry, actor.observation, actor.reset
        )
        seen, state, reward, terminated, truncated, info = env.step(
            env_keys[t], actor.env, action, env.default_params
        )
        info = dict(info)
        final = info.pop("final_observation")
        step = rollout.Trajectory(
            actor.observation,
            actor.reset,
            action,
            recorded,
            reward,
            terminated,
            truncated,
            final,
            info,
        )
        got = jax.tree.map(lambda x, t=t: x[t], trajectory)
        jax.tree.map(np.testing.assert_array_equal, got, step)
        actor = rollout.Actor(state, seen, terminated | truncated, carry)
    jax.tree.map(np.testing.assert_array_equal, end, actor)
    # The memory was cleared exactly where an episode began.
    np.testing.assert_array_equal(
        trajectory.recorded["count"], np.asarray(trajectory.observation[..., 0]) + 1
    )


def test_two_rollouts_go_on_where_the_first_stopped():
    env = batch()
    actor = rollout.start(KEY, env, env.default_params)
    actor, first = rollout.unroll(KEY, env, env.default_params, always(1), actor, T)
    _, second = rollout.unroll(KEY, env, env.default_params, always(1), actor, 2)
    np.testing.assert_array_equal(second.reset[0], first.terminated[-1])
    going_on = ~np.asarray(second.reset[0])
    np.testing.assert_array_equal(
        second.observation[0][going_on], np.asarray(first.final_observation[-1])[going_on]
    )


def test_episode_metrics_equal_a_loop():
    env = batch()
    actor = rollout.start(KEY, env, env.default_params)
    _, trajectory = rollout.unroll(KEY, env, env.default_params, always(1), actor, T)
    sums = rollout.episode_metrics(trajectory)
    returns, lengths = [], []
    for i in range(N):
        total = length = 0.0
        for t in range(T):
            total, length = total + float(trajectory.reward[t, i]), length + 1
            if trajectory.terminated[t, i]:
                returns.append(total)
                lengths.append(length)
                total = length = 0.0
    assert tuple(map(float, sums["episode_return"])) == (sum(returns), len(returns))
    assert tuple(map(float, sums["episode_length"])) == (sum(lengths), len(lengths))


@pytest.mark.parametrize("max_steps", [None, 3])
def test_evaluate_is_exact(max_steps):
    env, episodes = corridor(), 50
    keys = rng.batch_keys(jax.random.split(KEY)[0], (episodes,))
    length = jax.vmap(lambda key: env.reset(key, env.default_params)[1].length)(keys)
    length = np.minimum(length, max_steps or 9)
    run = functools.partial(rollout.evaluate, env=env, env_params=env.default_params, carry=())
    for action in (0, 1):
        policy = always(action)
        sums = jax.jit(
            lambda key, policy=policy: run(
                key, policy=policy, episodes=episodes, max_steps=max_steps
            )
        )(KEY)
        expected = action * (length * (length + 1) / 2).sum()
        assert tuple(map(float, sums["return"])) == (expected, episodes)
        assert tuple(map(float, sums["length"])) == (length.sum(), episodes)


def test_evaluate_plays_one_episode_only():
    """CartPole pushed one way falls within 12 steps: later episodes must not count."""
    env = cartpole.make()
    sums = rollout.evaluate(KEY, env, env.default_params, always(1), (), 20)
    assert 8 * 20 <= float(sums["return"][0]) == float(sums["length"][0]) <= 12 * 20


def test_evaluate_wants_a_limit():
    env = corridor()._replace(default_params=())
    with pytest.raises(ValueError, match="Corridor has no finite max_steps_in_episode"):
        rollout.evaluate(KEY, env, (), always(1), (), 3)


@pytest.mark.parametrize("memory", [0, 4])
def test_critic_bootstraps_from_the_final_observation(memory):
    env = batch(wrappers.time_limit(corridor(), 4))
    params = env.default_params
    network = networks.actor_critic(
        env.observation_space(params), env.action_space(params), (8,), memory=memory
    )
    weights = network.init(KEY)
    actor = rollout.start(KEY, env, params, network.carry(N))

    def policy(key, carry, observation, reset):
        (distribution, _), carry = network.apply(weights, carry, observation, reset)
        return distribution.sample(key), carry, carry

    _, trajectory = rollout.unroll(KEY, env, params, policy, actor, T)
    _, v_tm1, v_t = rollout.critic(network, weights, actor.carry, trajectory)
    done = np.asarray(trajectory.terminated | trajectory.truncated)
    assert 0 < done.sum() < done.size and np.asarray(trajectory.truncated).any()
    # Within an episode V(s_{t+1}) is what the next step says of its own observation.
    np.testing.assert_allclose(v_t[:-1][~done[:-1]], v_tm1[1:][~done[:-1]], rtol=1e-5, atol=1e-6)
    # At its end it is the value of what followed, with the memory of the episode that ended.
    for t, i in np.argwhere(done):
        carry = jax.tree.map(lambda x, t=t: x[t], trajectory.recorded)
        (_, value), _ = network.apply(
            weights, carry, trajectory.final_observation[t], jnp.zeros(N, bool)
        )
        np.testing.assert_allclose(v_t[t, i], value[i], rtol=1e-5, atol=1e-6)


def test_an_evaluation_without_an_end_is_refused():
    """Neither a limit of the environment nor one of ours: it would never return."""
    env = as_environment(river_swim())
    with pytest.raises(ValueError, match=r"no finite max_steps_in_episode: .*config.eval_steps"):
        ppo.make(env, ppo.Config())
    config = ppo.Config(num_envs=2, num_steps=4, eval_episodes=2, eval_steps=3)
    algorithm = ppo.make(env, config)
    state = jax.jit(algorithm.init)(jax.random.key(0), ppo.Hyper())
    scores = jax.jit(algorithm.evaluate)(state, jax.random.key(1), ppo.Hyper())
    assert scores["length"] == (6, 2)


def test_a_batch_is_no_environment_for_a_learner():
    with pytest.raises(ValueError, match="is a batch already"):
        ppo.make(wrappers.vectorize(cartpole.make(), 2), ppo.Config())


# --- the last hundred episodes ---


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_the_last_hundred_episodes_are_those_of_a_queue(share):
    rng_, queue, count = np.random.default_rng(0), collections.deque(maxlen=100), 0
    episodes = rollout.Episodes.none()
    remember = jax.jit(rollout.remember)
    for _ in range(6):
        returns = rng_.normal(size=(30, 5)).astype(np.float32)
        ended = rng_.random((2, 30, 5)) < share / 2
        step = rollout.Trajectory(
            observation=(),
            reset=(),
            action=(),
            recorded=(),
            reward=(),
            terminated=jnp.asarray(ended[0]),
            truncated=jnp.asarray(ended[1]),
            final_observation=(),
            info={"episode_return": jnp.asarray(returns)},
        )
        episodes = remember(episodes, step)
        for value, done in zip(returns.ravel(), ended.any(0).ravel(), strict=True):
            if done:
                queue.append(value)
                count += 1
        assert int(episodes.count) == count
        kept = np.asarray(episodes.returns)[100 - len(queue) :]
        np.testing.assert_array_equal(kept, np.array(queue, np.float32))
        total, known = jax.jit(lambda e: e.metrics())(episodes)["return"]
        assert known == len(queue)
        np.testing.assert_allclose(total, sum(queue), rtol=1e-4, atol=1e-4)
