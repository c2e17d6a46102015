"""Tables learned from single steps: TD(0), Sarsa, Q-learning.

    table(x_t) += alpha (r_{t+1} + gamma table(x_{t+1}) - table(x_t))

Each is one `scan` over the steps of an environment that observes the number of its state
(`jrl.envs.tabular.as_environment`). The functions are pure: `jit` them with the environment and
the number of steps bound, and `vmap` them over keys, parameters and step sizes:

    learn = functools.partial(q_learning, env=env, num_steps=10_000)
    jax.jit(jax.vmap(lambda key: learn(key, params=env.default_params, hp=Hyper())))(keys)

Equation numbers are those of Sutton & Barto 2018, http://incompleteideas.net/book/the-book-2nd.html.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jrl.envs.environment import Environment
from jrl.envs.tabular import accumulate, draw
from jrl.losses.value import q_learning_error, sarsa_error, td_error
from jrl.types import Array, Bool, Float, Int, Key, Leaf, PyTree, Scalar

__all__ = ["Hyper", "Learned", "epsilon_greedy", "q_learning", "sarsa", "td0"]


class Hyper(struct.PyTreeNode):
    """Numbers of the learners: the step is `step_size / n^decay` at the n-th visit.

    `decay` 0 is the constant step; 1 with `step_size` 1 averages; between 1/2 (exclusive) and 1
    the conditions of Robbins & Monro hold, and the tables converge.
    """

    step_size: Leaf = 0.1
    discount: Leaf = 0.99
    epsilon: Leaf = 0.1
    decay: Leaf = 0.0


class Learned(NamedTuple):
    """The final table, f32[S] or f32[S, A]; of each step the reward f32[N], episode end bool[N]."""

    values: Float[Array, "*table"]
    rewards: Float[Array, " N"]
    ended: Bool[Array, " N"]


def epsilon_greedy(key: Key, scores: Float[Array, " A"], epsilon: Scalar) -> Int[Array, ""]:
    """Draws the best action, ties at random, or with probability `epsilon` any (section 2.2).

    One batch of A + 1 uniform numbers decides all of it. The key is consumed.

    >>> int(epsilon_greedy(jax.random.key(0), jnp.array([0.0, 2.0, 1.0]), 0.0))
    1
    """
    uniform = jax.random.uniform(key, (scores.shape[-1] + 1,))
    allowed = (scores == jnp.max(scores)) | (uniform[-1] < epsilon)
    return jnp.argmax(jnp.where(allowed, uniform[:-1], -1.0)).astype(jnp.int32)


def td0(
    key: Key,
    env: Environment,
    params: PyTree,
    policy: Float[Array, "S A"],
    hp: Hyper,
    num_steps: int,
) -> Learned:
    """Learns V of a policy: `V(s) += alpha (r + gamma V(s') - V(s))` (eq. 6.2), from V = 0.

    `env` must observe the state's number (`as_environment`); episodes follow each other for
    `num_steps` steps; the bootstrap stops at terminated and goes on through truncated steps.

    >>> from jrl.envs.chains import corridor
    >>> from jrl.envs.tabular import as_environment
    >>> env = as_environment(corridor(1))
    >>> policy = jnp.array([[0.0, 1.0]] * 3)
    >>> hp = Hyper(step_size=0.5)
    >>> td0(jax.random.key(0), env, env.default_params, policy, hp, 2).values
    Array([0.  , 0.75, 0.  ], dtype=float32)
    """
    cumulative = accumulate(policy)
    first, key = jax.random.split(key)
    observation, state = env.reset(first, params)
    values = jnp.zeros(policy.shape[0])

    def advance(carry, _):
        key, observation, state, values, visits = carry
        key, act, move, again = jax.random.split(key, 4)
        action = draw(cumulative[observation], jax.random.uniform(act))
        following, state, reward, terminated, truncated, _ = env.step(move, state, action, params)
        error = td_error(
            values[observation], reward, hp.discount * (1.0 - terminated), values[following]
        )
        visits = visits.at[observation].add(1.0)
        values = values.at[observation].add(_step_size(hp, visits[observation]) * error)
        ended = terminated | truncated
        following, state = _select(ended, env.reset(again, params), (following, state))
        return (key, following, state, values, visits), (reward, ended)

    start = (key, observation, state, values, values)
    (*_, values, _), (rewards, ended) = jax.lax.scan(advance, start, None, length=num_steps)
    return Learned(values, rewards, ended)


def sarsa(key: Key, env: Environment, params: PyTree, hp: Hyper, num_steps: int) -> Learned:
    """Learns Q of its own epsilon-greedy policy: `Q(s,a) += alpha (r + gamma Q(s',a') - Q(s,a))`.

    Equation 6.7, from Q = 0; the rest is as in `td0`.

    >>> from jrl.envs.chains import corridor
    >>> from jrl.envs.tabular import as_environment
    >>> env = as_environment(corridor(1))
    >>> sarsa(jax.random.key(0), env, env.default_params, Hyper(), 9).values.shape
    (3, 2)
    """
    return _control(sarsa_error, key, env, params, hp, num_steps)


def q_learning(key: Key, env: Environment, params: PyTree, hp: Hyper, num_steps: int) -> Learned:
    """Learns Q*: `Q(s, a) += alpha (r + gamma max_a' Q(s', a') - Q(s, a))` (eq. 6.8), from Q = 0.

    It behaves epsilon-greedily. Deviation from the book's listing: the next action is chosen
    before the update, as in `sarsa`, not after it. The rest is as in `td0`.

    >>> from jrl.envs.chains import corridor
    >>> from jrl.envs.tabular import as_environment
    >>> env = as_environment(corridor(1))
    >>> q_learning(jax.random.key(0), env, env.default_params, Hyper(), 9).values.shape
    (3, 2)
    """

    def error(q_tm1, a_tm1, r_t, discount_t, q_t, a_t):
        return q_learning_error(q_tm1, a_tm1, r_t, discount_t, q_t)

    return _control(error, key, env, params, hp, num_steps)


def _control(
    error: Callable, key: Key, env: Environment, params: PyTree, hp: Hyper, num_steps: int
) -> Learned:
    first, choose, key = jax.random.split(key, 3)
    observation, state = env.reset(first, params)
    q = jnp.zeros((env.observation_space(params).n, env.action_space(params).n))
    action = epsilon_greedy(choose, q[observation], hp.epsilon)

    def advance(carry, _):
        key, observation, state, action, q, visits = carry
        key, act, move, again = jax.random.split(key, 4)
        following, state, reward, terminated, truncated, _ = env.step(move, state, action, params)
        discount = hp.discount * (1.0 - terminated)
        bootstrap = epsilon_greedy(act, q[following], hp.epsilon)
        delta = error(q[observation], action, reward, discount, q[following], bootstrap)
        visits = visits.at[observation, action].add(1.0)
        step_size = _step_size(hp, visits[observation, action])
        q = q.at[observation, action].add(step_size * delta)
        ended = terminated | truncated
        fresh, fresh_state = env.reset(again, params)
        # The episode that `act` would have continued is over, so its key is free for this one.
        opening = epsilon_greedy(act, q[fresh], hp.epsilon)
        observation, state, action = _select(
            ended, (fresh, fresh_state, opening), (following, state, bootstrap)
        )
        return (key, observation, state, action, q, visits), (reward, ended)

    start = (key, observation, state, action, q, q)
    (*_, q, _), (rewards, ended) = jax.lax.scan(advance, start, None, length=num_steps)
    return Learned(q, rewards, ended)


def _step_size(hp: Hyper, visits: Float[Array, ""]) -> Float[Array, ""]:
    return hp.step_size / visits**hp.decay


def _select(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
