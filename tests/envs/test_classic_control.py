"""The five classic-control environments against Gymnasium's, which computes in float64.

One step is compared on thousands of states, many of them at walls, thresholds and wraps; whole
episodes are replayed from Gymnasium's own, set back onto its state every `resync` steps where the
dynamics are chaotic. A step closer than `MARGIN` to a discontinuity of Gymnasium's (a threshold, a
wall, a wrap) may fall on either side of it in float32 and is left out; few may be. Computed in
float64, a step must agree to the rounding of the observation.

Largest differences measured, relative to max(1, |x|):

    one step     CartPole 1e-7  Acrobot 6e-5  MountainCar 1e-7  continuous 1e-7  Pendulum 7e-6
    an episode   CartPole 3e-6  Acrobot 2e-6  MountainCar 3e-7  continuous 1e-6  Pendulum 2e-5

Acrobot's worst are states at both velocity limits, where a Runge-Kutta step of 0.2 s multiplies
rounding errors; its median is 6e-8.
"""

import dataclasses
import math
from collections.abc import Callable

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrl.envs import acrobot, cartpole, mountain_car, mountain_car_continuous, pendulum

STATES = 4500
MARGIN = 1e-6
PI = math.pi


@dataclasses.dataclass(frozen=True)
class Case:
    """One environment: where to sample it, where it jumps, how far float32 may be off.

    `usual` and `edges` are (low, high) boxes of states, `start` is that of states after a reset,
    `gap(state, next_state)` the distance to the nearest discontinuity.
    """

    module: object
    usual: tuple
    edges: tuple
    start: tuple
    gap: Callable
    tolerance: float
    resync: int

    @property
    def env(self):
        return self.module.make()


def _never(state, after):
    return math.inf


def _cartpole_gap(state, after):
    return min(abs(abs(after[0]) - 2.4), abs(abs(after[2]) - PI / 15))


def _acrobot_gap(state, after):
    return abs(-math.cos(after[0]) - math.cos(after[0] + after[1]) - 1)


def _car_gap(goal):
    def gap(state, after):
        # A clipped car is at the wall in both; only one that nearly reaches it may differ.
        wall = abs(after[0] + 1.2) if abs(after[0] + 1.2) > 1e-7 else 1
        return min(abs(after[0] - goal), abs(after[1]) if after[0] > goal else 1, wall)

    return gap


_CARS = {"usual": ([-1.2, -0.07], [0.6, 0.07]), "start": ([-0.6, 0], [-0.4, 0])}
CASES = {
    "CartPole-v1": Case(
        cartpole,
        usual=([-2.4, -3, -0.21, -3], [2.4, 3, 0.21, 3]),
        edges=(
            ([2.35, -3, -0.2, -3], [2.45, 3, 0.2, 3]),
            ([-2.45, -3, -0.2, -3], [-2.35, 3, 0.2, 3]),
            ([-2, -3, 0.2, -3], [2, 3, 0.22, 3]),
            ([-2, -3, -0.22, -3], [2, 3, -0.2, 3]),
        ),
        start=([-0.05] * 4, [0.05] * 4),
        gap=_cartpole_gap,
        tolerance=1e-6,
        resync=50,
    ),
    "Acrobot-v1": Case(
        acrobot,
        usual=([-PI, -PI, -4 * PI, -9 * PI], [PI, PI, 4 * PI, 9 * PI]),
        edges=(
            ([PI - 0.05, -PI, -2, -2], [PI, PI, 2, 2]),
            ([-PI, -PI, -2, -2], [PI, -PI + 0.05, 2, 2]),
            ([-0.1] * 4, [0.1] * 4),
            ([1.9, -0.3, -2, -2], [2.2, 0.3, 2, 2]),
        ),
        start=([-0.1] * 4, [0.1] * 4),
        gap=_acrobot_gap,
        tolerance=2e-4,
        resync=25,
    ),
    "MountainCar-v0": Case(
        mountain_car,
        edges=(
            ([-1.2, -0.07], [-1.13, 0.01]),
            ([0.4, -0.01], [0.6, 0.07]),
            ([-0.6, 0.065], [0.6, 0.07]),
        ),
        gap=_car_gap(0.5),
        tolerance=1e-6,
        resync=200,
        **_CARS,
    ),
    "MountainCarContinuous-v0": Case(
        mountain_car_continuous,
        edges=(
            ([-1.2, -0.07], [-1.13, 0.01]),
            ([0.35, -0.01], [0.6, 0.07]),
            ([-0.6, 0.065], [0.6, 0.07]),
        ),
        gap=_car_gap(0.45),
        tolerance=1e-6,
        resync=999,
        **_CARS,
    ),
    "Pendulum-v1": Case(
        pendulum,
        usual=([-80, -8], [80, 8]),
        edges=(
            ([PI - 0.1, -8], [PI + 0.1, 8]),
            ([-PI - 0.1, -8], [-PI + 0.1, 8]),
            ([-1, 7.5], [1, 8]),
            ([-1, -1], [1, 1]),
        ),
        start=([-PI, -1], [PI, 1]),
        gap=_never,
        tolerance=1e-5,
        resync=200,
    ),
}

each = pytest.mark.parametrize("name", CASES)


def _states(case, rng):
    low, high = (np.array(bound) for bound in case.usual)
    parts = [rng.uniform(low, high, (STATES // 2, len(low)))]
    for low, high in case.edges:
        parts.append(rng.uniform(low, high, (STATES // 2 // len(case.edges) + 1, len(low))))
    return np.concatenate(parts)[:STATES].astype(np.float32)


def _actions(env, rng, size):
    if hasattr(env.action_space, "n"):
        return rng.integers(env.action_space.n, size=size).astype(np.int32)
    # A fifth beyond the bounds: what is done there is part of the task.
    return (1.25 * env.action_space.high * rng.uniform(-1, 1, (size, 1))).astype(np.float32)


def _to_state(case, rows, time):
    return case.module.State(*jnp.asarray(rows, jnp.float32).T, jnp.asarray(time, jnp.int32))


def _set(env, row):
    env.unwrapped.state = np.asarray(row, np.float64)
    if hasattr(env.unwrapped, "steps_beyond_terminated"):
        env.unwrapped.steps_beyond_terminated = None


def _batched_step(case):
    step = jax.jit(jax.vmap(case.env.step, (None, 0, 0, None)))
    return lambda state, action: step(jax.random.key(0), state, action, case.env.default_params)


def _gymnasium_steps(name, case):
    """Returns (states, actions, (observation, reward, terminated)) and which are clear-cut."""
    env, rng = gymnasium.make(name).unwrapped, np.random.default_rng(0)
    states, actions = _states(case, rng), _actions(env, rng, STATES)
    results, clear = [], []
    for row, action in zip(states, actions, strict=True):
        _set(env, row)
        results.append(env.step(action)[:3])
        clear.append(case.gap(row, np.array(env.state, np.float64)) >= MARGIN)
    assert np.mean(clear) > 0.999
    return states, actions, [np.array(c) for c in zip(*results, strict=True)], np.array(clear)


def _error(actual, expected):
    difference = np.abs(np.asarray(actual) - expected)
    return np.max(difference / np.maximum(1, np.abs(expected)))


@each
def test_step_equals_gymnasium(name):
    case = CASES[name]
    states, actions, expected, clear = _gymnasium_steps(name, case)
    if name != "Pendulum-v1":
        assert 0.02 < expected[2].mean() < 0.98
    observation, _, reward, terminated, truncated, info = _batched_step(case)(
        _to_state(case, states, np.zeros(STATES)), actions
    )
    assert observation.dtype == reward.dtype == jnp.float32
    assert terminated.dtype == truncated.dtype == jnp.bool_
    assert not truncated.any() and info == {}
    np.testing.assert_array_equal(terminated[clear], expected[2][clear])
    error = _error(observation[clear], expected[0][clear])
    reward_error = _error(reward[clear], expected[1][clear])
    print(f"{name}: observation {error:.1e}, reward {reward_error:.1e}, left out {sum(~clear)}")
    assert max(error, reward_error) <= case.tolerance


@each
def test_step_in_float64_equals_gymnasium(name):
    case = CASES[name]
    states, actions, expected, clear = _gymnasium_steps(name, case)
    with jax.enable_x64(True):
        state = case.module.State(*states.astype(np.float64).T, np.zeros(STATES, np.int32))
        actions = actions.astype(np.float64) if actions.dtype == np.float32 else actions
        observation, _, reward, terminated, *_ = _batched_step(case)(state, actions)
    np.testing.assert_array_equal(terminated[clear], expected[2][clear])
    assert observation.dtype == np.float64
    assert _error(observation[clear], expected[0][clear]) <= 1.2e-7
    assert _error(reward[clear], expected[1][clear]) <= 1e-8


def _balance(observation):
    return int(observation @ np.array([0.05, 0.3, 1.0, 0.5]) > 0)


def _play(name, case, seed, policy=None):
    """Plays one episode of Gymnasium's, from a start of ours: (states, actions, results)."""
    env = gymnasium.make(name)
    env.reset(seed=seed)
    observation, start = case.env.reset(jax.random.key(seed), case.env.default_params)
    _set(env, np.array(jax.tree.leaves(start)[:-1]))
    rng = np.random.default_rng(seed)
    states, actions, results = [], [], []
    while not results or not (results[-1][2] or results[-1][3]):
        action = _actions(env, rng, 1)[0] if policy is None else policy(np.array(observation))
        states.append(np.array(env.unwrapped.state, np.float64))
        actions.append(action)
        results.append(env.step(action)[:4])
        observation = results[-1][0]
    return np.array(states), np.array(actions), [np.array(c) for c in zip(*results, strict=True)]


def _replay(case, states, actions):
    def body(state, inputs):
        time, row, action = inputs
        row = jax.tree.map(lambda x, y: jnp.where(time % case.resync == 0, x, y), row, state)
        observation, state, *rest, _ = case.env.step(
            jax.random.key(0), row, action, case.env.default_params
        )
        return state, (observation, *rest)

    time = jnp.arange(len(actions))
    rows = _to_state(case, states, time)
    start = jax.tree.map(lambda x: x[0], rows)
    return jax.jit(lambda *args: jax.lax.scan(body, start, args))(time, rows, actions)[1]


# The policies: random, and where random episodes end early one that lasts to the time limit.
EPISODES = [(name, None) for name in CASES] + [("CartPole-v1", _balance)]


@pytest.mark.parametrize(("name", "policy"), EPISODES)
def test_episode_equals_gymnasium(name, policy):
    case, lengths, worst = CASES[name], [], 0.0
    for seed in range(1 if policy else 3):
        states, actions, expected = _play(name, case, seed, policy)
        observation, reward, terminated, truncated = _replay(case, states, actions)
        lengths.append(len(actions))
        worst = max(worst, _error(observation, expected[0]))
        assert _error(reward, expected[1]) <= 1e-4
        np.testing.assert_array_equal(terminated, expected[2])
        np.testing.assert_array_equal(truncated, expected[3])
    print(f"{name}: episodes of {lengths} steps, observation {worst:.1e}")
    assert worst <= 1e-4
    if policy or name != "CartPole-v1":
        assert max(lengths) == gymnasium.spec(name).max_episode_steps


@each
def test_time_limit(name):
    case = CASES[name]
    limit = gymnasium.spec(name).max_episode_steps
    assert case.env.default_params.max_steps_in_episode == limit
    rows = np.repeat([np.mean(case.start, axis=0)], 2, axis=0)
    space = case.env.action_space(case.env.default_params)
    action = jnp.zeros((2, *space.shape), space.dtype)
    truncated = _batched_step(case)(_to_state(case, rows, [limit - 2, limit - 1]), action)[4]
    assert truncated.tolist() == [False, True]


@each
def test_spaces_equal_gymnasium(name):
    env, expected = CASES[name].env, gymnasium.make(name)
    assert env.name == name
    space = env.observation_space(env.default_params)
    assert space.shape == expected.observation_space.shape
    np.testing.assert_allclose(space.low, expected.observation_space.low, rtol=1e-6)
    np.testing.assert_allclose(space.high, expected.observation_space.high, rtol=1e-6)
    action = env.action_space(env.default_params)
    assert action.shape == expected.action_space.shape
    if hasattr(expected.action_space, "n"):
        assert env.num_actions == expected.action_space.n
    else:
        np.testing.assert_array_equal(action.low, expected.action_space.low)
        np.testing.assert_array_equal(action.high, expected.action_space.high)


@each
def test_reset_distribution_equals_gymnasium(name):
    case, count = CASES[name], 4000
    keys = jax.random.split(jax.random.key(0), count)
    observation, state = jax.jit(jax.vmap(case.env.reset, (0, None)))(keys, case.env.default_params)
    *columns, time = jax.tree.leaves(state)
    ours = np.stack(columns, -1)
    env = gymnasium.make(name).unwrapped
    theirs, first = [], []
    for seed in range(count):
        first.append(env.reset(seed=seed)[0])
        theirs.append(np.array(env.state, np.float64))
    theirs = np.array(theirs)
    assert (np.array(time) == 0).all()
    low, high = (np.array(bound, np.float32) for bound in case.start)
    assert (ours >= low).all() and (ours <= high).all()
    assert (theirs >= low - 1e-6).all() and (theirs <= high + 1e-6).all()
    # Four standard errors of a mean and of a variance of `count` uniform draws.
    width = high - low
    assert (np.abs(ours.mean(0) - (low + high) / 2) <= 4 * width / math.sqrt(12 * count)).all()
    assert (np.abs(ours.var(0) - width**2 / 12) <= 4 * width**2 / math.sqrt(180 * count)).all()
    assert np.abs(observation.mean(0) - np.mean(first, 0)).max() <= 8 / math.sqrt(count)
    assert np.abs(observation.var(0) - np.var(first, 0)).max() <= 8 / math.sqrt(count)


PARAMETERS = {
    "CartPole-v1": "force",
    "Acrobot-v1": "gravity",
    "MountainCar-v0": "gravity",
    "MountainCarContinuous-v0": "power",
    "Pendulum-v1": "gravity",
}


@each
def test_vmap_over_parameters(name):
    """A batch of parameters gives what each gives alone, and each gives something else."""
    env = CASES[name].env
    _, state = env.reset(jax.random.key(0), env.default_params)
    space = env.action_space(env.default_params)
    action = jnp.ones(space.shape, space.dtype) * (0 if name == "CartPole-v1" else 1)
    default = getattr(env.default_params, PARAMETERS[name])
    values = default * jnp.array([0.5, 1.0, 2.0])

    def after(value):
        params = env.default_params.replace(**{PARAMETERS[name]: value})
        return env.step(jax.random.key(1), state, action, params)[0]

    batch = jax.jit(jax.vmap(after))(values)
    np.testing.assert_allclose(batch, [after(v) for v in values], rtol=1e-5, atol=1e-6)
    assert len(np.unique(batch, axis=0)) == 3
    np.testing.assert_allclose(
        batch[1], env.step(jax.random.key(1), state, action, env.default_params)[0], rtol=1e-5
    )


@each
def test_gradient_is_finite(name):
    env = CASES[name].env
    _, state = env.reset(jax.random.key(0), env.default_params)
    space = env.action_space(env.default_params)

    def total(leaves):
        start = state.replace(**leaves)
        return env.step(
            jax.random.key(1), start, jnp.ones(space.shape, space.dtype), env.default_params
        )[0].sum()

    leaves = {k: v for k, v in vars(state).items() if k != "time"}
    gradient = jax.tree.leaves(jax.grad(total)(leaves))
    assert all(jnp.isfinite(g) for g in gradient) and any(g != 0 for g in gradient)


@each
def test_step_ignores_the_key(name):
    """A deterministic step must leave no random bits in the program."""
    env = CASES[name].env
    _, state = env.reset(jax.random.key(0), env.default_params)
    space = env.action_space(env.default_params)
    action = jnp.zeros(space.shape, space.dtype)
    step = jax.make_jaxpr(env.step)(jax.random.key(1), state, action, env.default_params)
    reset = str(jax.make_jaxpr(env.reset)(jax.random.key(1), env.default_params))
    assert "random" not in str(step)
    assert reset.count("random_bits") == 1 and "random_split" not in reset
