"""Exact solutions against NumPy, enumeration, linear programming; learners against exact values."""

import functools
import itertools

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jrl import tabular
from jrl.envs import chains, gridworlds
from jrl.envs.tabular import as_environment, make_params
from jrl.losses.value import action_advantages, state_value

GARNETS = range(3)


def garnet(seed, states=4, actions=3, branching=2):
    return chains.garnet(jax.random.key(seed), states, actions, branching)


def random_policy(seed, mdp):
    logits = jax.random.normal(jax.random.key(seed), mdp.reward.shape)
    return jax.nn.softmax(2 * logits)


def numpy_evaluate(mdp, policy, discount):
    transition, reward, policy = (
        np.asarray(x, np.float64) for x in (mdp.transition, mdp.reward, policy)
    )
    alive = ~np.asarray(mdp.terminal)
    forward = np.einsum("ijk,jk->ji", transition, policy)[np.ix_(alive, alive)]
    values = np.zeros(mdp.num_states)
    earned = (reward * policy).sum(1)[alive]
    values[alive] = np.linalg.solve(np.eye(alive.sum()) - discount * forward, earned)
    return values


@pytest.mark.parametrize("seed", GARNETS)
def test_next_distribution_is_the_sum_of_the_lecture(seed):
    mdp = garnet(seed)
    rng = np.random.default_rng(seed)
    mu, xi = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(3))
    policy = rng.dirichlet(np.ones(3), 4)
    shared, own = np.zeros((2, 4))
    for i, j, k in itertools.product(range(4), range(4), range(3)):
        shared[i] += float(mdp.transition[i, j, k]) * mu[j] * xi[k]
        own[i] += float(mdp.transition[i, j, k]) * mu[j] * policy[j, k]
    step = jax.jit(tabular.next_distribution)
    mu, xi, policy = (jnp.asarray(x, jnp.float32) for x in (mu, xi, policy))
    np.testing.assert_allclose(step(mdp, mu, xi), shared, atol=1e-6)
    np.testing.assert_allclose(step(mdp, mu, policy), own, atol=1e-6)
    forward = tabular.policy_transition(mdp, policy)
    np.testing.assert_allclose(forward @ mu, own, atol=1e-6)
    np.testing.assert_allclose(forward.sum(0), 1.0, atol=1e-6)


def test_state_distributions_match_simulated_frequencies():
    mdp = gridworlds.frozen_lake()
    env = as_environment(mdp)
    xi = jnp.array([0.1, 0.4, 0.4, 0.1])
    exact = tabular.state_distributions(mdp, jnp.broadcast_to(xi, (12, 4)))
    np.testing.assert_allclose(exact.sum(1), 1.0, atol=1e-5)

    def episode(key):
        index, state = env.reset(key, env.default_params)

        def advance(state, key):
            act, move = jax.random.split(key)
            action = jax.random.choice(act, 4, p=xi)
            index, state, *_ = env.step(move, state, action, env.default_params)
            return state, index

        return jax.lax.scan(advance, state, jax.random.split(key, 12))[1]

    visited = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), 8000))
    frequencies = jax.nn.one_hot(visited, 16).mean(0)
    np.testing.assert_allclose(frequencies, exact[1:], atol=0.025)
    stationary = tabular.state_distributions(mdp, jnp.broadcast_to(xi, (12, 16, 4)))
    np.testing.assert_allclose(stationary, exact, atol=1e-6)


@pytest.mark.parametrize("seed", GARNETS)
def test_occupancy_is_the_discounted_sum_and_prices_the_policy(seed):
    mdp = garnet(seed)
    policy = random_policy(seed, mdp)
    measure = jax.jit(tabular.occupancy)(mdp, policy, 0.8)
    mu, total = np.asarray(mdp.initial, np.float64), np.zeros((4, 3))
    for time in range(200):
        total += 0.2 * 0.8**time * mu[:, None] * np.asarray(policy)
        mu = np.asarray(tabular.policy_transition(mdp, policy), np.float64) @ mu
    np.testing.assert_allclose(measure, total, atol=1e-5)
    value = mdp.initial @ tabular.evaluate(mdp, policy, 0.8)
    np.testing.assert_allclose((measure * mdp.reward).sum() / 0.2, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "mdp", [garnet(0, 30, 4, 5), gridworlds.four_rooms(), gridworlds.frozen_lake()]
)
def test_policy_evaluation_equals_float64(mdp):
    policy = random_policy(1, mdp)
    expected = numpy_evaluate(mdp, policy, 0.95)
    solved = jax.jit(tabular.evaluate)(mdp, policy, 0.95)
    np.testing.assert_allclose(solved, expected, rtol=2e-4, atol=2e-5)
    swept = jax.jit(tabular.evaluate_iteratively)(mdp, policy, 0.95, 1e-6)
    np.testing.assert_allclose(swept.values, expected, rtol=2e-4, atol=1e-4)
    assert swept.residual <= 1e-6
    q = tabular.action_values(mdp, solved, 0.95)
    np.testing.assert_allclose(state_value(q, policy), solved, rtol=1e-4, atol=1e-4)
    advantages = action_advantages(q, solved)
    np.testing.assert_allclose((policy * advantages).sum(1), 0.0, atol=1e-4)


def test_random_walk_has_the_values_of_the_book():
    mdp = chains.corridor(5)
    policy = jnp.full((7, 2), 0.5)
    expected = [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 0]
    np.testing.assert_allclose(tabular.evaluate(mdp, policy, 1.0), expected, atol=1e-5)
    swept = tabular.evaluate_iteratively(mdp, policy, 1.0, 1e-7)
    np.testing.assert_allclose(swept.values, expected, atol=1e-5)


@pytest.mark.parametrize("solve", [tabular.value_iteration, tabular.policy_iteration])
def test_corridor_closed_form(solve):
    solution = jax.jit(solve)(chains.corridor(6), 0.9)
    np.testing.assert_allclose(solution.values[1:-1], 0.9 ** np.arange(5, -1, -1), rtol=1e-5)
    assert solution.actions[1:-1].tolist() == [1] * 6
    assert solution.residual < 1e-6


def test_value_iteration_counts_its_sweeps():
    # The reward travels one cell a sweep; one more sweep sees that nothing changes.
    assert tabular.value_iteration(chains.corridor(6), 0.9).sweeps == 7
    cut = tabular.value_iteration(chains.corridor(6), 0.9, max_sweeps=3)
    assert cut.sweeps == 3
    assert cut.residual > 0.5


def test_best_of_all_deterministic_policies():
    keys = jax.random.split(jax.random.key(0), 6)
    mdps = jax.vmap(lambda key: chains.garnet(key, 4, 3, 2))(keys)
    by_values = jax.jit(jax.vmap(lambda mdp: tabular.value_iteration(mdp, 0.9, 1e-6)))(mdps)
    by_policies = jax.jit(jax.vmap(lambda mdp: tabular.policy_iteration(mdp, 0.9)))(mdps)
    for index in range(6):
        mdp = jax.tree.map(lambda x, i=index: x[i], mdps)
        every = [
            numpy_evaluate(mdp, np.eye(3)[list(actions)], 0.9)
            for actions in itertools.product(range(3), repeat=4)
        ]
        best = np.max(every, axis=0)
        np.testing.assert_allclose(by_values.values[index], best, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(by_policies.values[index], best, rtol=1e-4, atol=1e-4)
        for actions in by_values.actions[index], by_policies.actions[index]:
            reached = numpy_evaluate(mdp, np.eye(3)[np.asarray(actions)], 0.9)
            np.testing.assert_allclose(reached, best, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mdp", [gridworlds.four_rooms(), garnet(3, 20, 3, 4)])
def test_optimal_values_solve_the_linear_program(mdp):
    """V* is the least V with V(s) >= Q_V(s, a) for every action."""
    discount, states = 0.9, mdp.num_states
    transition = np.asarray(mdp.transition, np.float64)
    rows = discount * transition.reshape(states, -1).T - np.repeat(
        np.eye(states), mdp.num_actions, 0
    )
    program = scipy.optimize.linprog(
        np.ones(states), rows, -np.asarray(mdp.reward, np.float64).ravel(), bounds=(None, None)
    )
    assert program.success
    by_values = jax.jit(tabular.value_iteration)(mdp, discount)
    by_policies = jax.jit(tabular.policy_iteration)(mdp, discount)
    np.testing.assert_allclose(by_values.values, program.x, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(by_policies.values, program.x, rtol=1e-4, atol=2e-5)


def test_frozen_lake_values_from_gymnasiums_table():
    for size in "4x4", "8x8":
        table = gymnasium.make("FrozenLake-v1", map_name=size).unwrapped.P
        values = np.zeros(len(table))
        for _ in range(3000):
            values = np.array(
                [
                    max(
                        sum(p * (r + 0.99 * values[s] * (not over)) for p, s, r, over in outcomes)
                        for outcomes in actions.values()
                    )
                    for actions in table.values()
                ]
            )
        layout = {"4x4": gridworlds.LAKE_4X4, "8x8": gridworlds.LAKE_8X8}[size]
        solution = tabular.value_iteration(gridworlds.frozen_lake(layout), 0.99, 1e-7)
        np.testing.assert_allclose(solution.values, values, atol=1e-4)


def test_river_swim_always_right_is_best():
    solution = tabular.policy_iteration(chains.river_swim(), 0.95)
    assert solution.actions.tolist() == [1] * 6
    # With little to gain on the far side, staying for the small reward is best.
    poor = tabular.policy_iteration(chains.river_swim(far=5.0), 0.95)
    assert poor.actions[0] == 0


def test_chain_pays_what_strens_reports():
    """Strens 2000, table 1: the optimal policy earns 3677 in 1000 steps of the chain."""
    mdp = chains.chain()
    forward = tabular.deterministic(jnp.zeros(5, jnp.int32), 2)
    _, values = tabular.finite_horizon_values(mdp, forward, 1000)
    np.testing.assert_allclose(values[0, 0], 3677, atol=20)
    assert tabular.value_iteration(mdp, 0.99).actions.tolist() == [0] * 5


def test_cliff_walk_optimal_path():
    solution = tabular.value_iteration(gridworlds.cliff_walk(), 1.0)
    assert solution.values[36] == -13
    assert solution.actions[36] == 0
    assert solution.actions[24:35].tolist() == [1] * 11


def test_finite_horizon_against_enumeration_and_the_limit():
    mdp = garnet(5, 3, 2, 2)
    policy = random_policy(0, mdp)
    q, v = jax.jit(tabular.finite_horizon_values, static_argnums=2)(mdp, policy, 4)
    transition, reward, table = (np.asarray(x) for x in (mdp.transition, mdp.reward, policy))

    def expected(state, action, left):
        later = sum(
            transition[s, state, action] * table[s, a] * expected(s, a, left - 1)
            for s, a in itertools.product(range(3), range(2))
            if left > 1
        )
        return reward[state, action] + later

    for time, state, action in itertools.product(range(4), range(3), range(2)):
        np.testing.assert_allclose(
            q[time, state, action], expected(state, action, 4 - time), rtol=1e-4, atol=1e-5
        )
    np.testing.assert_allclose(v, (q * policy[None]).sum(-1), atol=1e-5)
    np.testing.assert_allclose(q[-1], mdp.reward, atol=1e-6)
    _, long = tabular.finite_horizon_values(mdp, policy, 200, 0.9)
    np.testing.assert_allclose(long[0], tabular.evaluate(mdp, policy, 0.9), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="^horizon: "):
        tabular.finite_horizon_values(mdp, policy, 0)


def test_values_vmap_over_discounts():
    mdp = garnet(0)
    discounts = jnp.array([0.5, 0.9, 0.99])
    many = jax.vmap(lambda discount: tabular.value_iteration(mdp, discount).values)(discounts)
    for values, discount in zip(many, (0.5, 0.9, 0.99), strict=True):
        alone = tabular.value_iteration(mdp, discount).values
        np.testing.assert_allclose(values, alone, rtol=1e-4, atol=1e-4)


def test_epsilon_greedy_frequencies():
    scores = jnp.array([1.0, 3.0, 3.0, 0.0])
    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = jax.jit(jax.vmap(lambda key: tabular.epsilon_greedy(key, scores, 0.2)))(keys)
    frequencies = np.bincount(draws, minlength=4) / 20_000
    np.testing.assert_allclose(frequencies, [0.05, 0.45, 0.45, 0.05], atol=0.015)


def learn(algorithm, mdp, hp, num_steps, seeds, horizon=float("inf"), **kwargs):
    env = as_environment(mdp, horizon)
    run = functools.partial(algorithm, env=env, num_steps=num_steps, **kwargs)
    keys = jax.random.split(jax.random.key(0), seeds)
    return jax.jit(jax.vmap(lambda key: run(key, params=env.default_params, hp=hp)))(keys)


def test_td0_converges_to_the_random_walk():
    hp = tabular.Hyper(step_size=1.0, discount=1.0, decay=0.7)
    policy = jnp.full((7, 2), 0.5)
    learned = learn(tabular.td0, chains.corridor(5), hp, 20_000, 8, policy=policy)
    expected = np.broadcast_to([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 0], (8, 7))
    np.testing.assert_allclose(learned.values, expected, atol=0.05)
    np.testing.assert_allclose(learned.values.mean(0), expected[0], atol=0.015)


def test_td0_first_updates_by_hand():
    hp = tabular.Hyper(step_size=0.5, discount=0.5)
    right = tabular.deterministic(jnp.ones(4, jnp.int32), 2)
    learned = learn(tabular.td0, chains.corridor(2), hp, 4, 1, policy=right)
    # The start is the left cell; episodes: (0 -> 1), (1 -> end, reward 1), twice.
    np.testing.assert_allclose(learned.values[0], [0, 0.125, 0.75, 0], atol=1e-6)
    assert learned.rewards[0].tolist() == [0, 1, 0, 1]
    assert learned.ended[0].tolist() == [False, True, False, True]


def test_bootstrapping_goes_on_through_truncation():
    """One state, reward 1 for ever, discount 1/2: V = 2 however short the episodes are."""
    mdp = chains.garnet(jax.random.key(0), 1, 1, 1).replace(reward=jnp.ones((1, 1)))
    hp = tabular.Hyper(step_size=0.5, discount=0.5, epsilon=0.0)
    policy = jnp.ones((1, 1))
    for learned in (
        learn(tabular.td0, mdp, hp, 60, 1, horizon=1, policy=policy),
        learn(tabular.q_learning, mdp, hp, 60, 1, horizon=1),
        learn(tabular.sarsa, mdp, hp, 60, 1, horizon=1),
    ):
        np.testing.assert_allclose(learned.values.ravel(), [2.0], rtol=1e-4)
        assert learned.ended.all()


def learn_garnets(algorithm, hp, num_steps, seeds):
    """Learns on three random processes at once; returns them and tables [3, seeds, S, A]."""
    mdps = jax.vmap(lambda key: chains.garnet(key, 5, 2, 3))(jax.random.split(jax.random.key(7), 3))
    params = jax.vmap(make_params)(mdps)
    params = params.replace(max_steps_in_episode=jnp.full(3, jnp.inf))
    env = as_environment(jax.tree.map(lambda x: x[0], mdps))
    keys = jax.random.split(jax.random.key(0), (3, seeds))
    run = jax.vmap(lambda key, params: algorithm(key, env, params, hp, num_steps).values, (0, None))
    tables = jax.jit(jax.vmap(run))(keys, params)
    return [jax.tree.map(lambda x, i=i: x[i], mdps) for i in range(3)], tables


def test_q_learning_converges_to_the_optimum():
    hp = tabular.Hyper(step_size=1.0, discount=0.8, epsilon=0.5, decay=0.65)
    mdps, tables = learn_garnets(tabular.q_learning, hp, 25_000, 4)
    for mdp, learned in zip(mdps, tables, strict=True):
        values = tabular.policy_iteration(mdp, 0.8).values
        exact = tabular.action_values(mdp, values, 0.8)
        np.testing.assert_allclose(learned, np.broadcast_to(exact, (4, 5, 2)), atol=0.3)
        np.testing.assert_allclose(learned.mean(0), exact, atol=0.08)


def test_sarsa_converges_to_the_values_of_its_own_policy():
    hp = tabular.Hyper(step_size=1.0, discount=0.8, epsilon=0.3, decay=0.65)
    mdps, tables = learn_garnets(tabular.sarsa, hp, 25_000, 4)
    for mdp, learned in zip(mdps, tables, strict=True):
        greedy = tabular.deterministic(jnp.argmax(learned.mean(0), -1), 2)
        values = tabular.evaluate(mdp, 0.7 * greedy + 0.3 / 2, 0.8)
        exact = tabular.action_values(mdp, values, 0.8)
        np.testing.assert_allclose(learned, np.broadcast_to(exact, (4, 5, 2)), atol=0.3)
        np.testing.assert_allclose(learned.mean(0), exact, atol=0.1)


def greedy_path(q):
    """Follows the greedy policy of a cliff-walk table from the start; returns the cells."""
    mdp = gridworlds.cliff_walk()
    following = np.asarray(mdp.transition.argmax(0))
    cells = [36]
    while cells[-1] != 47 and len(cells) < 60:
        cells.append(int(following[cells[-1], int(q[cells[-1]].argmax())]))
    return cells


def test_cliff_walk_sarsa_is_safe_and_q_learning_optimal():
    """Sutton & Barto 2018, example 6.6: epsilon 0.1, step size 0.5, no discount."""
    hp = tabular.Hyper(step_size=0.5, discount=1.0, epsilon=0.1)
    mdp, seeds = gridworlds.cliff_walk(), 8
    safe = learn(tabular.sarsa, mdp, hp, 16_000, seeds)
    edge = learn(tabular.q_learning, mdp, hp, 16_000, seeds)
    # Q-learning: from every seed the shortest path, along the edge.
    for q in edge.values:
        assert greedy_path(np.asarray(q)) == [36, *range(24, 36), 47]
    # Sarsa: its tables are noisy at this step size, their mean is not. It leaves the edge.
    path = greedy_path(np.asarray(safe.values.mean(0)))
    assert path[-1] == 47
    assert sum(24 <= cell < 36 for cell in path) <= 4
    # While learning, the safe path earns about -25 an episode and the edge -50 (the book's figure).
    late = slice(8_000, None)
    returns = [
        float((run.rewards[:, late].sum(1) / run.ended[:, late].sum(1)).mean())
        for run in (safe, edge)
    ]
    assert -32 < returns[0] < -19
    assert -65 < returns[1] < -38


def test_learners_vmap_over_step_sizes():
    mdp = gridworlds.cliff_walk()
    env = as_environment(mdp)
    run = functools.partial(
        tabular.q_learning, jax.random.key(3), env, env.default_params, num_steps=300
    )
    axes = tabular.Hyper(0, None, None, None)
    hp = tabular.Hyper(step_size=jnp.array([0.1, 0.5]))
    many = jax.jit(jax.vmap(lambda hp: run(hp=hp), in_axes=(axes,)))(hp)
    for index, step_size in enumerate((0.1, 0.5)):
        alone = jax.jit(run)(hp=tabular.Hyper(step_size=step_size))
        np.testing.assert_allclose(many.values[index], alone.values, rtol=1e-5, atol=1e-5)
