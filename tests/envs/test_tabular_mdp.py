"""Tables against Gymnasium's, hand arithmetic and simulation; sampling against the tables."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jrl.envs import chains, gridworlds
from jrl.envs.tabular import TabularMDP, accumulate, as_environment, draw, make_mdp, make_params

LAKES = {"4x4": gridworlds.LAKE_4X4, "8x8": gridworlds.LAKE_8X8}


def gymnasium_tables(name, **options):
    """Returns T[S', S, A], expected rewards, p(terminated | s, a), and the start of Gymnasium."""
    env = gymnasium.make(name, **options).unwrapped
    states, actions = env.observation_space.n, env.action_space.n
    transition = np.zeros((states, states, actions))
    reward, ended = np.zeros((2, states, actions))
    for state in range(states):
        for action in range(actions):
            for probability, following, paid, terminated in env.P[state][action]:
                transition[following, state, action] += probability
                reward[state, action] += probability * paid
                ended[state, action] += probability * terminated
    return transition, reward, ended, np.asarray(env.initial_state_distrib)


def assert_equals_gymnasium(mdp, name, **options):
    transition, reward, ended, start = gymnasium_tables(name, **options)
    alive = ~np.asarray(mdp.terminal)
    np.testing.assert_allclose(mdp.transition[:, alive], transition[:, alive], atol=1e-7)
    np.testing.assert_allclose(mdp.reward[alive], reward[alive], rtol=1e-6)
    entering = np.einsum("ijk,i->jk", mdp.transition, mdp.terminal.astype(np.float32))
    np.testing.assert_allclose(entering[alive], ended[alive], atol=1e-6)
    np.testing.assert_allclose(mdp.initial, start)


@pytest.mark.parametrize("slippery", [False, True])
@pytest.mark.parametrize("size", LAKES)
def test_frozen_lake_equals_gymnasium(size, slippery):
    mdp = gridworlds.frozen_lake(LAKES[size], slippery)
    assert_equals_gymnasium(mdp, "FrozenLake-v1", map_name=size, is_slippery=slippery)


def test_frozen_lake_success_rate_equals_gymnasium():
    mdp = gridworlds.frozen_lake(success=0.6)
    assert_equals_gymnasium(mdp, "FrozenLake-v1", map_name="4x4", success_rate=0.6)


@pytest.mark.parametrize("slippery", [False, True])
def test_cliff_walk_equals_gymnasium(slippery):
    cliff = np.arange(37, 47)
    mdp = gridworlds.cliff_walk(slippery)
    assert_equals_gymnasium(mdp, "CliffWalking-v1", is_slippery=slippery)
    assert float(mdp.transition[cliff].sum()) == 0


@pytest.mark.parametrize(
    ("name", "mdp"),
    [
        ("FrozenLake-v1", gridworlds.frozen_lake(slippery=False)),
        ("CliffWalking-v1", gridworlds.cliff_walk()),
    ],
)
def test_steps_equal_gymnasium(name, mdp):
    theirs, ours = gymnasium.make(name, is_slippery=False), as_environment(mdp)
    step = jax.jit(ours.step)
    rng = np.random.default_rng(0)
    for episode in range(5):
        expected, _ = theirs.reset(seed=episode)
        observation, state = ours.reset(jax.random.key(episode), ours.default_params)
        for _ in range(60):
            assert int(observation) == expected
            action = int(rng.integers(4))
            expected, paid, terminated, _, _ = theirs.step(action)
            observation, state, reward, over, truncated, _ = step(
                jax.random.key(0), state, jnp.int32(action), ours.default_params
            )
            assert (float(reward), bool(over), bool(truncated)) == (paid, terminated, False)
            if terminated:
                break


def test_lake_pays_one_or_nothing():
    env = as_environment(gridworlds.frozen_lake())

    def reward(key):
        _, state = env.reset(key, env.default_params)
        state = state.replace(index=jnp.int32(14))
        following, _, reward, *_ = env.step(key, state, jnp.int32(2), env.default_params)
        return following, reward

    following, rewards = jax.vmap(reward)(jax.random.split(jax.random.key(0), 900))
    np.testing.assert_array_equal(rewards, (following == 15).astype(jnp.float32))
    assert abs(rewards.mean() - 1 / 3) < 0.06


@pytest.mark.parametrize("seed", range(3))
def test_sampled_transitions_follow_the_table(seed):
    mdp = chains.garnet(jax.random.key(seed), 5, 2, 3)
    env = as_environment(mdp)
    count = 6000

    def sample(key, index, action):
        _, state = env.reset(key, env.default_params)
        state = state.replace(index=index)
        return env.step(key, state, action, env.default_params)[0]

    grid = jnp.meshgrid(jnp.arange(5), jnp.arange(2), indexing="ij")
    keys = jax.random.split(jax.random.key(100 + seed), (count, 5, 2))
    drawn = jax.jit(jax.vmap(jax.vmap(jax.vmap(sample)), in_axes=(0, None, None)))(keys, *grid)
    for state in range(5):
        for action in range(2):
            expected = np.asarray(mdp.transition[:, state, action], np.float64)
            counts = np.bincount(np.asarray(drawn[:, state, action]), minlength=5)
            assert counts[expected == 0].sum() == 0
            # Cells of less than five expected counts are outside the test's approximation.
            cells = expected * count >= 5
            wanted = expected[cells] / expected[cells].sum() * counts[cells].sum()
            assert scipy.stats.chisquare(counts[cells], wanted).pvalue > 1e-4


def test_sampled_starts_follow_the_initial_distribution():
    env = as_environment(chains.river_swim())
    reset = jax.jit(jax.vmap(lambda key: env.reset(key, env.default_params)[0]))
    counts = np.bincount(reset(jax.random.split(jax.random.key(0), 4000)), minlength=6)
    assert counts[[0, 3, 4, 5]].sum() == 0
    assert scipy.stats.chisquare(counts[[1, 2]]).pvalue > 1e-3


def test_impossible_outcomes_are_never_drawn_at_the_edges():
    cumulative = accumulate(jnp.array([0.0, 0.1, 0.0, 0.2, 0.7, 0.0]))
    below_one = jnp.float32(np.nextafter(np.float32(1), np.float32(0)))
    ends = jnp.stack([jnp.float32(0), below_one])
    assert draw(jnp.stack([cumulative, cumulative]), ends).tolist() == [1, 4]
    long = accumulate(jnp.concatenate([jnp.full(4097, 1 / 4097), jnp.zeros(7)]))
    assert int(draw(long, below_one)) < 4097


def test_four_rooms():
    mdp = gridworlds.four_rooms()
    numbers = gridworlds.cell_numbers()
    np.testing.assert_allclose(mdp.transition.sum(0), 1.0, atol=1e-6)
    assert mdp.num_states == 104
    # In the open: 2/3 the intended cell, 1/9 each of the three others.
    here, up, right = numbers[3, 3], numbers[2, 3], numbers[3, 4]
    np.testing.assert_allclose(mdp.transition[up, here, 0], 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(mdp.transition[right, here, 0], 1 / 9, rtol=1e-6)
    # In the top left corner, up and left stay.
    corner = numbers[1, 1]
    np.testing.assert_allclose(mdp.transition[corner, corner, 0], 2 / 3 + 1 / 9, rtol=1e-6)
    goal = numbers[7, 9]
    assert bool(mdp.terminal[goal])
    np.testing.assert_allclose(mdp.reward[numbers[6, 9], 2], 2 / 3, rtol=1e-6)
    assert mdp.initial[goal] == 0
    np.testing.assert_allclose(mdp.initial.sum(), 1.0, rtol=1e-6)
    assert gridworlds.four_rooms(start=(1, 1)).initial[corner] == 1


def test_river_swim_by_hand():
    mdp = chains.river_swim()
    right = [
        [0.7, 0.3, 0, 0, 0, 0],
        [0.1, 0.6, 0.3, 0, 0, 0],
        [0, 0.1, 0.6, 0.3, 0, 0],
        [0, 0, 0.1, 0.6, 0.3, 0],
        [0, 0, 0, 0.1, 0.6, 0.3],
        [0, 0, 0, 0, 0.7, 0.3],
    ]
    np.testing.assert_allclose(mdp.transition[:, :, 1].T, right, atol=1e-7)
    np.testing.assert_array_equal(mdp.transition[:, :, 0].argmax(0), [0, 0, 1, 2, 3, 4])
    assert mdp.reward[0, 0] == 5
    np.testing.assert_allclose(mdp.reward[5, 1], 3000.0, rtol=1e-6)
    assert float(mdp.outcome[5, 5, 1]) == 10_000
    np.testing.assert_allclose(mdp.initial, [0, 0.5, 0.5, 0, 0, 0])


@pytest.mark.parametrize("stochastic", [False, True])
def test_deep_sea_against_a_simulation(stochastic):
    size = 5
    mapping = np.random.default_rng(1).integers(0, 2, (size, size))
    mdp = chains.deep_sea(size, stochastic, mapping=mapping)
    for row in range(size):
        for column in range(size):
            here = row * size + column
            for action in range(2):
                goes_right = action == mapping[row, column]
                outcomes = np.zeros(size * size + 1)
                for moved, probability in ((1, 0.8), (0, 0.2)) if stochastic else ((1, 1.0),):
                    if not goes_right:
                        probability, moved = 1.0 / (2 if stochastic else 1), -1
                    landing = int(np.clip(column + moved, 0, size - 1))
                    below = size * size if row == size - 1 else (row + 1) * size + landing
                    outcomes[below] += probability
                np.testing.assert_allclose(mdp.transition[:, here, action], outcomes, atol=1e-7)
                reward = (goes_right and column == size - 1) - 0.01 / size * goes_right
                np.testing.assert_allclose(mdp.reward[here, action], reward, rtol=1e-5)
    assert mdp.terminal.tolist() == [False] * size * size + [True]


def test_deep_sea_best_return():
    env = as_environment(chains.deep_sea(8))
    _, state = env.reset(jax.random.key(0), env.default_params)
    total = 0.0
    for time in range(8):
        _, state, reward, terminated, _, _ = env.step(
            jax.random.key(0), state, jnp.int32(1), env.default_params
        )
        total += float(reward)
        assert bool(terminated) is (time == 7)
    np.testing.assert_allclose(total, 0.99, rtol=1e-5)


def test_chain_by_hand():
    mdp = chains.chain()
    np.testing.assert_allclose(mdp.transition[:, 2, 0], [0.2, 0, 0, 0.8, 0], atol=1e-7)
    np.testing.assert_allclose(mdp.transition[:, 4, 1], [0.8, 0, 0, 0, 0.2], atol=1e-7)
    np.testing.assert_allclose(mdp.reward[4], [8.4, 3.6], rtol=1e-6)


def test_garnet_is_a_distribution_with_the_given_branching():
    keys = jax.random.split(jax.random.key(0), 64)
    mdps = jax.jit(jax.vmap(lambda key: chains.garnet(key, 7, 3, 4)))(keys)
    np.testing.assert_allclose(mdps.transition.sum(1), 1.0, atol=1e-5)
    np.testing.assert_array_equal((mdps.transition > 0).sum(1), 4)
    assert mdps.transition.shape == (64, 7, 7, 3)
    # Every state is a successor equally often: 4 of 7.
    often = (np.asarray(mdps.transition) > 0).mean((0, 2, 3))
    np.testing.assert_allclose(often, 4 / 7, atol=0.06)
    assert abs(np.asarray(mdps.reward).mean()) < 0.1


def test_environments_vmap_over_processes():
    keys = jax.random.split(jax.random.key(0), 8)
    mdps = jax.vmap(lambda key: chains.garnet(key, 4, 2, 1))(keys)
    params = jax.vmap(lambda mdp: make_params(mdp, 10))(mdps)
    env = as_environment(jax.tree.map(lambda x: x[0], mdps))

    def step(key, params):
        index, state = env.reset(key, params)
        return index, *env.step(key, state, jnp.int32(1), params)[:3:2]

    before, after, rewards = jax.jit(jax.vmap(step))(keys, params)
    every = np.arange(8)
    np.testing.assert_array_equal(after, mdps.transition.argmax(1)[every, before, 1])
    np.testing.assert_allclose(rewards, mdps.reward[every, before, 1])


def test_one_hot_observations_and_truncation():
    env = as_environment(chains.river_swim(), max_steps_in_episode=3, one_hot=True)
    params = env.default_params
    observation, state = env.reset(jax.random.key(0), params)
    assert env.observation_space(params).shape == (6,) == observation.shape
    for time in range(3):
        observation, state, _, terminated, truncated, _ = env.step(
            jax.random.key(time), state, jnp.int32(1), params
        )
        assert int(observation.argmax()) == int(state.index)
        assert bool(truncated) is (time == 2)
        assert not terminated


def test_terminal_columns_are_overwritten():
    transition = np.full((2, 2, 1), 0.5)
    mdp = make_mdp(transition, [[1.0], [9.0]], [1.0, 0.0], [False, True])
    assert mdp.transition[:, 1, 0].tolist() == [0.0, 1.0]
    assert mdp.reward[1, 0] == 0
    assert isinstance(mdp, TabularMDP)


GOOD = {"transition": np.full((2, 2, 1), 0.5), "reward": np.zeros((2, 1)), "initial": [1.0, 0.0]}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"transition": np.full((2, 2, 1), 0.4)}, "transition"),
        ({"transition": np.array([[[1.5], [0.5]], [[-0.5], [0.5]]])}, "transition"),
        ({"transition": np.full((2, 3, 1), 0.5)}, "transition"),
        ({"transition": np.full((2, 2, 1), np.nan)}, "transition"),
        ({"reward": np.zeros(2)}, "reward"),
        ({"reward": np.full((2, 1), np.inf)}, "reward"),
        ({"initial": [0.5, 0.4]}, "initial"),
        ({"initial": [1.0]}, "initial"),
        ({"terminal": [True, False]}, "initial"),
        ({"terminal": [True]}, "terminal"),
    ],
)
def test_bad_tables_name_the_field(changes, field):
    with pytest.raises(ValueError, match=f"^{field}: [^\n]+$"):
        make_mdp(**{**GOOD, **changes})


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: chains.corridor(0), "length"),
        (lambda: chains.chain(slip=1.2), "slip"),
        (lambda: chains.river_swim(2), "length"),
        (lambda: chains.deep_sea(1), "size"),
        (lambda: chains.deep_sea(3, mapping=np.ones((2, 2))), "mapping"),
        (lambda: chains.garnet(jax.random.key(0), 3, 2, 4), "branching"),
        (lambda: chains.garnet(jax.random.key(0), 3, 0, 1), "num_actions"),
        (lambda: gridworlds.frozen_lake(("SF", "F")), "layout"),
        (lambda: gridworlds.frozen_lake(("FF", "FG")), "layout"),
        (lambda: gridworlds.frozen_lake(("SX",)), "layout"),
        (lambda: gridworlds.frozen_lake(success=2.0), "success"),
        (lambda: gridworlds.four_rooms(goal=(0, 0)), "goal"),
        (lambda: gridworlds.four_rooms(start=(20, 1)), "start"),
        (lambda: gridworlds.four_rooms(start=(7, 9)), "start"),
    ],
)
def test_bad_instances_name_the_field(build, field):
    with pytest.raises(ValueError, match=f"^{field}: [^\n]+$"):
        build()
