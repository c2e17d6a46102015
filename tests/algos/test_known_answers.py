"""Every algorithm finds the known answers of the probe environments, for several seeds at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import ALGORITHMS

from jrl import networks
from jrl.envs import probes

SEEDS = 3
CRITICS = ["ppo", "a2c", "reinforce_value"]


def learn(case, env, **config):
    """Trains several seeds in one program; returns their final states and the network."""
    algorithm = case.make(env, **config)

    # Compiling costs more than learning here, and nothing compares bits.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    @jax.vmap
    def run(key):
        state = algorithm.init(key, case.hyper)

        def body(state, _):
            return algorithm.iterate(state, case.hyper)[0], ()

        return jax.lax.scan(body, state, length=case.iterations)[0]

    state = run(jax.random.split(jax.random.key(0), SEEDS))
    assert np.all(jax.tree.leaves(jax.tree.map(lambda x: np.isfinite(x).all(), state.train.params)))
    return state


def answers(case, env, state, **config):
    """Returns (distribution, value) of every seed at every entry [S, T, C, ...] of the probe."""
    params = env.default_params
    fields = {**vars(case.config), **config}
    network = networks.actor_critic(
        env.observation_space(params),
        env.action_space(params),
        fields["hidden"],
        memory=fields["memory"],
    )
    observation = params.observations
    reset = jnp.zeros(observation.shape[:2], bool).at[0].set(True)
    carry = network.carry(observation.shape[1])

    @jax.jit
    @jax.vmap
    def apply(p):
        return networks.unroll(network, p, carry, observation, reset)[0]

    return apply(state.train.params)


@pytest.mark.parametrize("name", CRITICS)
@pytest.mark.parametrize(
    "make", [probes.constant_value, probes.observation_value, probes.discounted_value]
)
def test_value_probes(name, make):
    case, env = ALGORITHMS[name], make()
    solution = probes.solve(env.default_params, case.hyper.gamma)
    _, value = answers(case, env, learn(case, env))
    expected = np.broadcast_to(solution.value, value.shape)
    np.testing.assert_allclose(value, expected, atol=0.1)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("make", [probes.policy, probes.policy_and_value])
def test_policy_probes(name, make):
    case, env = ALGORITHMS[name], make()
    solution = probes.solve(env.default_params, case.hyper.gamma)
    distribution, value = answers(case, env, learn(case, env))
    right = np.broadcast_to(solution.action, (SEEDS, *solution.action.shape))
    log_prob = distribution.log_prob(jnp.asarray(right)[:, None])
    assert np.all(np.exp(log_prob) > 0.9)
    if name in CRITICS:
        np.testing.assert_allclose(value, np.broadcast_to(solution.value, value.shape), atol=0.2)


@pytest.mark.parametrize("name", ["ppo", "a2c", "reinforce_leave_one_out"])
@pytest.mark.parametrize("make", [probes.continuous_policy, probes.continuous_policy_and_value])
def test_continuous_probes(name, make):
    case, env = ALGORITHMS[name], make()
    solution = probes.solve(env.default_params, case.hyper.gamma)
    distribution, _ = answers(case, env, learn(case, env))
    expected = np.broadcast_to(solution.action, (SEEDS, *solution.action.shape))
    np.testing.assert_allclose(distribution.mode()[:, 0], expected, atol=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "a2c", "reinforce_value"])
def test_memory_probe(name):
    """A network with a GRU recalls the cue; one without cannot do better than chance."""
    case, env = ALGORITHMS[name], probes.memory(3)
    case = case._replace(iterations=2 * case.iterations)
    right = probes.solve(env.default_params, case.hyper.gamma).action
    chance = {}
    for memory in (0, 16):
        state = learn(case, env, memory=memory)
        distribution, _ = answers(case, env, state, memory=memory)
        last = jax.tree.map(lambda x: x[:, -1], distribution)
        chance[memory] = np.exp(last.log_prob(jnp.broadcast_to(right, (SEEDS, *right.shape))))
    assert np.all(chance[16] > 0.9)
    np.testing.assert_allclose(chance[0].mean(axis=1), 0.5, atol=1e-5)
