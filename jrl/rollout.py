"""Acting in environments: trajectories for learning, returns for evaluation."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jrl import networks, rng, train, tree
from jrl.distributions import Distribution
from jrl.envs.wrappers import VectorEnvironment, episode_statistics, vectorize
from jrl.losses import returns
from jrl.networks import Network
from jrl.train import Optimizer
from jrl.types import Array, Key, Leaf, Metrics, Params, PyTree, Scalar

RECENT = 100
"""Episodes that a learner remembers the returns of."""

__all__ = [
    "Actor",
    "Episodes",
    "Learner",
    "Policy",
    "Setup",
    "Trajectory",
    "advantages",
    "apply",
    "critic",
    "episode_metrics",
    "evaluate",
    "remember",
    "setup",
    "standardized",
    "start",
    "step_limit",
    "unroll",
]

Policy = Callable[[Key, PyTree, PyTree, Any], tuple[Any, PyTree, PyTree]]
"""(key, carry, observation, reset) -> (action, carry, whatever is to be recorded)."""


Encoder = Callable[[Any], Any]
"""What is done to an observation before the network sees it."""


class Actor(struct.PyTreeNode):
    """Where a batch of environments and the policy's memory stand between two rollouts."""

    env: Leaf
    observation: Leaf
    reset: Leaf
    """Whether the observation begins an episode."""
    carry: Leaf


class Trajectory(struct.PyTreeNode):
    """What happened, time-major: every array is [T, B, ...]."""

    observation: Leaf
    reset: Leaf
    action: Leaf
    recorded: Leaf
    """What the policy asked to keep, for example log-probabilities."""
    reward: Leaf
    terminated: Leaf
    truncated: Leaf
    final_observation: Leaf
    """The observation that followed the action, before any auto-reset."""
    info: Leaf


class Episodes(struct.PyTreeNode):
    """The returns of the last 100 episodes [100], the newest last, and how many there ever were."""

    returns: Leaf
    count: Leaf

    @classmethod
    def none(cls) -> "Episodes":
        """No episode has ended yet."""
        return cls(jnp.zeros(RECENT), jnp.int32(0))

    def metrics(self) -> Metrics:
        """Mean return of the episodes remembered, as (sum, count)."""
        known = jnp.minimum(self.count, RECENT)
        held = jnp.arange(RECENT) >= RECENT - known
        total = jnp.sum(jnp.where(held, self.returns, 0.0))
        return {"return": (total, known.astype(jnp.float32))}


class Setup(NamedTuple):
    """What an on-policy algorithm is made of; nothing here is traced."""

    config: Any
    env: Any
    batch: VectorEnvironment
    env_params: PyTree
    network: Network

    def init(
        self, key: Key, optimizer: Optimizer, hp: PyTree, extra: PyTree = (), env=None
    ) -> "Learner":
        """Starts a run: parameters, optimizer, environments (of `env`, if wrapped) and keys."""
        network_key, train_key, env_key, key = jax.random.split(key, 4)
        state = train.init(train_key, self.network.init(network_key), optimizer, hp, extra)
        actor = self.start(env_key, env)
        return Learner(state, actor, jnp.int32(0), key, Episodes.none())

    def start(self, key: Key, env: VectorEnvironment | None = None) -> "Actor":
        """Resets the batch (or `env`, a wrapped form of it) and clears the memories."""
        carry = self.network.carry(self.config.num_envs)
        return start(key, env or self.batch, self.env_params, carry)

    def policy(self, params: Params, greedy: bool = False, encode: Encoder = lambda x: x) -> Policy:
        """Makes the policy that samples, or takes the mode of, the network's distribution."""

        def policy(key, carry, observation, reset):
            (distribution, _), carry = self.network.apply(params, carry, encode(observation), reset)
            return distribution.mode() if greedy else distribution.sample(key), carry, ()

        return policy

    def evaluate(self, key: Key, policy: Policy) -> Metrics:
        """Plays `config.eval_episodes` episodes."""
        episodes = self.config.eval_episodes
        carry, steps = self.network.carry(episodes), self.config.eval_steps or None
        return evaluate(key, self.env, self.env_params, policy, carry, episodes, steps)


def setup(env, config, env_params: PyTree = None, network: Network | None = None) -> Setup:
    """Puts an environment (ours, or gymnax's as it is), a network and a `Config` together.

    The `Config` has `num_envs`, `hidden`, `memory`, `eval_episodes`, `eval_steps` and `validate`.
    Without a network, `networks.actor_critic` makes one that fits the spaces. Raises ValueError
    for a batch of environments, and where nothing would end an evaluation.
    """
    config.validate()
    if isinstance(env, VectorEnvironment):
        raise ValueError(
            f"{env.name} is a batch already, and learners need a single environment to batch and "
            "to evaluate: use rollout.unroll on it in a loop of your own"
        )
    env_params = env.default_params if env_params is None else env_params
    if network is None:
        spaces = env.observation_space(env_params), env.action_space(env_params)
        network = networks.actor_critic(*spaces, config.hidden, memory=config.memory)
    step_limit(env, env_params, config.eval_steps or None)
    batch = vectorize(episode_statistics(env), config.num_envs)
    return Setup(config, env, batch, env_params, network)


class Learner(struct.PyTreeNode):
    """The state of an on-policy algorithm: everything that its run needs to go on."""

    train: Leaf
    """A `jrl.train.TrainState`."""
    actor: Leaf
    iteration: Leaf
    key: Leaf
    """A constant root; every iteration folds in its number."""
    episodes: Leaf = ()
    """What `remember` keeps, for algorithms that call it."""


def apply(network: Network, params: Params, batch: PyTree, sequences: bool = False):
    """Returns (distribution, value) of every element of a batch of examples, in its layout.

    The batch has `observation`, `reset` and `carry`. A network without memory sees [N, ...];
    one with a memory, or `sequences`, means [B, T, ...] with the memories [B, ...] of the start.
    """
    if not (network.recurrent or sequences):
        return network.apply(params, (), batch.observation, batch.reset)[0]
    observation, reset = tree.swap_axes((batch.observation, batch.reset))
    outputs, _ = networks.unroll(network, params, batch.carry, observation, reset)
    return tree.swap_axes(outputs)


def critic(
    network: Network,
    params: Params,
    carry: PyTree,
    trajectory: Trajectory,
    encode: Encoder = lambda x: x,
) -> tuple[Distribution, Array, Array]:
    """Evaluates an actor-critic along a trajectory that began with the memory `carry`.

    Returns the distribution at every step, V(s_t) and V(s_{t+1}), all [T, B, ...]. The latter is
    that of the final observation where an episode ended, after the memory of that episode.
    """
    observation, final = encode(trajectory.observation), encode(trajectory.final_observation)
    (distribution, v_tm1), carries = networks.unroll(
        network, params, carry, observation, trajectory.reset
    )
    same_episode = jnp.zeros_like(trajectory.reset)
    (_, v_t), _ = network.apply(params, carries, final, same_episode)
    return distribution, v_tm1, v_t


def advantages(
    trajectory: Trajectory,
    v_tm1: Array,
    v_t: Array,
    gamma: Scalar,
    lambda_: Scalar,
    standardize: bool,
) -> tuple[Array, Array]:
    """Estimates advantages (GAE) and the targets A_t + V(s_t) of the value, [T, B].

    A terminated step is followed by nothing, a truncated one by V of its final observation.
    Standardised advantages have mean 0 and deviation 1 over the whole trajectory: examples are
    coupled here, before there are minibatches.
    """
    advantage = returns.generalized_advantages(
        trajectory.reward,
        gamma * (1.0 - trajectory.terminated),
        lambda_,
        v_tm1,
        # Nothing follows a terminated step: its observation may be anything, infinite too.
        jnp.where(trajectory.terminated, 0.0, v_t),
        jnp.asarray(trajectory.terminated | trajectory.truncated, bool),
    )
    target = advantage + v_tm1
    return standardized(advantage) if standardize else advantage, target


def standardized(x: Array) -> Array:
    """Shifts and scales an array to mean 0 and deviation 1 over all its elements."""
    return (x - jnp.mean(x)) / (jnp.std(x) + 1e-8)


def start(key: Key, env: VectorEnvironment, env_params: PyTree, carry: PyTree = ()) -> Actor:
    """Resets every environment of the batch."""
    observation, state = env.reset(key, env_params)
    return Actor(state, observation, jnp.ones(env.num_envs, bool), carry)


def unroll(
    key: Key, env: VectorEnvironment, env_params: PyTree, policy: Policy, actor: Actor, length: int
) -> tuple[Actor, Trajectory]:
    """Takes `length` steps in every environment of the batch.

    The randomness of the environments, new episodes included, is drawn before the scan in one
    batch: on a CPU, hashing keys inside the loop costs more than the physics.
    """
    env_key, policy_key = jax.random.split(key)
    noise = jax.vmap(env.draw, (0, None))(jax.random.split(env_key, length), env_params)

    def body(actor, x):
        key, noise = x
        action, carry, recorded = policy(key, actor.carry, actor.observation, actor.reset)
        observation, state, reward, terminated, truncated, info = env.advance(
            noise, actor.env, action, env_params
        )
        info = dict(info)
        final = info.pop("final_observation")
        step = Trajectory(
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
        return Actor(state, observation, terminated | truncated, carry), step

    return jax.lax.scan(body, actor, (rng.batch_keys(policy_key, (length,)), noise))


def episode_metrics(trajectory: Trajectory, mask: Array | None = None) -> Metrics:
    """Return and length of the episodes that ended in a trajectory, as (sum, count).

    Needs `wrappers.episode_statistics` below the batch. Steps outside `mask` do not count.
    """
    done = jnp.asarray(trajectory.terminated | trajectory.truncated, jnp.float32)
    if mask is not None:
        done = done * mask
    count = jnp.sum(done)
    return {
        name: (jnp.sum(done * trajectory.info[name]), count)
        for name in ("episode_return", "episode_length")
    }


def remember(episodes: Episodes, trajectory: Trajectory) -> Episodes:
    """Adds the episodes that ended in a trajectory, in the order of time."""
    done = jnp.asarray(trajectory.terminated | trajectory.truncated, bool).reshape(-1)
    ended = jnp.sum(done, dtype=jnp.int32)
    # The newest goes to the last place; those that do not fit fall off the front.
    place = RECENT - ended + jnp.cumsum(done, dtype=jnp.int32) - 1
    place = jnp.where(done & (place >= 0), place, RECENT)
    kept = episodes.returns[jnp.minimum(jnp.arange(RECENT) + ended, RECENT - 1)]
    returns = kept.at[place].set(trajectory.info["episode_return"].reshape(-1), mode="drop")
    return Episodes(returns, episodes.count + ended)


def step_limit(env, env_params: PyTree, max_steps: int | None = None):
    """Returns `max_steps`, or the environment's own limit.

    Raises ValueError if neither is finite: an evaluation would never end.
    """
    limit = max_steps or getattr(env_params, "max_steps_in_episode", math.inf)
    try:
        finite = bool(np.all(np.isfinite(limit)))
    except jax.errors.TracerArrayConversionError:
        finite = True  # only its owner knows, outside the trace
    if not finite:
        raise ValueError(
            f"{env.name} has no finite max_steps_in_episode: give evaluations a limit "
            "(config.eval_steps, or max_steps of rollout.evaluate)"
        )
    return limit


def evaluate(
    key: Key,
    env,
    env_params: PyTree,
    policy: Policy,
    carry: PyTree,
    episodes: int,
    max_steps: int | None = None,
) -> Metrics:
    """Plays one episode in each of `episodes` environments; returns (sum, count) of returns.

    Stops when all have ended, or after `max_steps` (by default the environment's own limit):
    what an unfinished episode earned until then counts. Raises ValueError if there is neither.
    """
    limit = step_limit(env, env_params, max_steps)
    batch = vectorize(episode_statistics(env), episodes)
    start_key, loop_key = jax.random.split(key)
    actor = start(start_key, batch, env_params, carry)
    zeros = jnp.zeros(episodes)

    def running(x):
        t, _, _, active = x[:4]
        return (t < limit) & jnp.any(active)

    def body(x):
        t, actor, returns, active, lengths = x
        step_key = jax.random.fold_in(loop_key, t)
        actor, step = unroll(step_key, batch, env_params, policy, actor, 1)
        returns = jnp.where(active, step.info["episode_return"][0], returns)
        lengths = jnp.where(active, step.info["episode_length"][0], lengths)
        return t + 1, actor, returns, active & ~actor.reset, lengths

    first = (jnp.int32(0), actor, zeros, jnp.ones(episodes, bool), jnp.zeros(episodes, jnp.int32))
    _, _, returns, _, lengths = jax.lax.while_loop(running, body, first)
    return {
        "return": (jnp.sum(returns), jnp.float32(episodes)),
        "length": (jnp.sum(lengths).astype(jnp.float32), jnp.float32(episodes)),
    }
