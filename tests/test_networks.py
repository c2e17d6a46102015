"""Networks as pure functions: shapes, initialisation, memory, and what `functional` refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jrl import networks, tree
from jrl.distributions import Categorical, Normal
from jrl.envs.spaces import Box, Discrete

KEY = jax.random.key(0)
BOX, DISCRETE = Box(-1.0, 1.0, (3,)), Discrete(4)


def gru(units=6):
    return networks.actor_critic(BOX, DISCRETE, (8,), memory=units)


def sequence(T=7, B=5):
    rng = np.random.default_rng(0)
    observation = jnp.float32(rng.normal(size=(T, B, 3)))
    return observation, jnp.asarray(rng.random((T, B)) < 0.3)


def test_parameters_are_plain_dicts_that_depend_on_the_key_alone():
    network = networks.actor_critic(BOX, DISCRETE)
    params = jax.jit(network.init)(KEY)
    assert type(params) is dict
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, params, network.init(KEY))
    other = network.init(jax.random.key(1))
    assert not np.array_equal(jax.tree.leaves(params)[-1], jax.tree.leaves(other)[-1])
    expected = 2 * (3 * 64 + 64 + 64 * 64 + 64) + 64 * 4 + 4 + 64 + 1
    assert tree.size(params) == expected


def test_apply_equals_numpy():
    params = networks.actor_critic(BOX, DISCRETE, (8,)).init(KEY)
    network = networks.actor_critic(BOX, DISCRETE, (8,))
    observation, reset = sequence()
    (policy, value), _ = jax.jit(network.apply)(params, (), observation, reset)

    def by_hand(layers):
        x = np.tanh(observation @ layers[0]["kernel"] + layers[0]["bias"])
        return x @ layers[1]["kernel"] + layers[1]["bias"]

    params, observation = jax.device_get((params, observation))
    layers = {name: params[name]["layers"] for name in ("policy", "value")}
    np.testing.assert_allclose(policy.logits, by_hand(layers["policy"]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(value, by_hand(layers["value"])[..., 0], rtol=1e-4, atol=1e-6)


def test_initialisation_is_orthogonal_with_small_policies():
    params = networks.actor_critic(BOX, DISCRETE).init(KEY)
    for name, scale in (("policy", 0.01), ("value", 1.0)):
        layers = params[name]["layers"]
        middle, last = layers[1]["kernel"], layers[2]["kernel"]
        np.testing.assert_allclose(middle.T @ middle, 2 * np.eye(64), atol=1e-4)
        np.testing.assert_allclose(last.T @ last, scale**2 * np.eye(last.shape[1]), atol=1e-4)
        assert all(float(jnp.abs(layer["bias"]).max()) == 0 for layer in layers.values())


def test_heads_and_encoders():
    network = networks.actor_critic(Discrete(5), Box(-2.0, 2.0, (2,)), (8,))
    params = network.init(KEY)
    observation = jnp.array([[0, 1, 4], [2, 2, 3]])
    (policy, value), _ = network.apply(params, (), observation, jnp.zeros((2, 3), bool))
    assert isinstance(policy, Normal) and policy.mean.shape == policy.log_std.shape == (2, 3, 2)
    assert value.shape == (2, 3) and float(jnp.abs(policy.log_std).max()) == 0.0
    np.testing.assert_array_equal(value[1, 0], value[1, 1])
    image = networks.actor_critic(Box(0.0, 1.0, (4, 4, 2)), DISCRETE, (8,))
    (policy, _), _ = image.apply(
        image.init(KEY), (), jnp.ones((3, 4, 4, 2), jnp.uint8), jnp.zeros(3, bool)
    )
    assert isinstance(policy, Categorical) and policy.logits.shape == (3, 4)


def test_a_memory_unrolls_as_step_by_step():
    network = gru()
    params, (observation, reset) = network.init(KEY), sequence()
    carry = network.carry(5) + 0.5
    ((policy, value), carries) = jax.jit(networks.unroll, static_argnums=0)(
        network, params, carry, observation, reset
    )
    for t in range(len(observation)):
        (step_policy, step_value), carry = network.apply(params, carry, observation[t], reset[t])
        np.testing.assert_allclose(policy.logits[t], step_policy.logits, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(value[t], step_value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(carries[t], carry, rtol=1e-5, atol=1e-6)


def test_a_reset_clears_the_memory_of_its_row_only():
    network = gru()
    params, (observation, _) = network.init(KEY), sequence()
    reset = jnp.zeros((7, 5), bool).at[3, 2].set(True)
    _, carries = networks.unroll(network, params, network.carry(5), observation, reset)
    late = networks.unroll(network, params, network.carry(5), observation[3:], reset[3:])[1]
    _, without = networks.unroll(network, params, network.carry(5), observation, reset & False)
    np.testing.assert_array_equal(carries[3:, 2], late[:, 2])
    others = np.arange(5) != 2
    np.testing.assert_array_equal(carries[:, others], without[:, others])
    assert float(jnp.abs(carries[-1, 2] - without[-1, 2]).max()) > 1e-4


def test_a_memory_is_the_gru_of_the_docstring():
    network = gru(4)
    params, (observation, _) = network.init(KEY), sequence(B=1)
    h = np.full(4, 0.3)
    _, carry = network.apply(params, jnp.float32(h)[None], observation[0], jnp.zeros(1, bool))
    layer = {
        k: {n: np.float64(v) for n, v in params[k].items()} for k in ("embed", "inputs", "hidden")
    }
    x = np.tanh(np.float64(observation[0, 0]) @ layer["embed"]["kernel"] + layer["embed"]["bias"])
    xr, xz, xn = np.split(x @ layer["inputs"]["kernel"] + layer["inputs"]["bias"], 3)
    hr, hz, hn = np.split(h @ layer["hidden"]["kernel"], 3)
    r, z = 1 / (1 + np.exp(-(xr + hr))), 1 / (1 + np.exp(-(xz + hz)))
    expected = (1 - z) * np.tanh(xn + r * hn) + z * h
    np.testing.assert_allclose(carry[0], expected, rtol=1e-5, atol=1e-6)


def test_recurrent_tells_whether_there_is_a_memory():
    assert gru().recurrent and not networks.actor_critic(BOX, DISCRETE).recurrent


def test_functional_refuses_state_that_is_no_parameter():
    class Counter(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(2, 2, rngs=rngs)
            self.count = nnx.Variable(jnp.int32(0))

        def __call__(self, x):
            return self.linear(x)

    with pytest.raises(ValueError):
        networks.functional(Counter)
    with pytest.raises(ValueError):
        networks.functional(lambda rngs: nnx.BatchNorm(2, rngs=rngs))


def test_functional_goes_through_every_transformation():
    init, apply = networks.functional(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
    keys, x = jax.random.split(KEY, 4), jnp.ones((5, 3))
    population = jax.jit(jax.vmap(init))(keys)
    outputs = jax.vmap(apply, (0, None))(population, x)
    assert outputs.shape == (4, 5, 2)
    np.testing.assert_allclose(outputs[2], apply(init(keys[2]), x), rtol=1e-6)
    grads = jax.grad(lambda p: apply(p, x).sum())(init(KEY))
    np.testing.assert_allclose(grads["kernel"], np.full((3, 2), 5.0))


def test_normc_makes_the_weights_of_every_unit_one_length():
    spaces = Box(-1.0, 1.0, (5,)), Box(-1.0, 1.0, (2,))
    network = networks.actor_critic(*spaces, (7, 6), initializer="normc")
    params = jax.jit(jax.vmap(network.init))(jax.random.split(jax.random.key(0), 3))
    for head, last in (("policy", 0.01), ("value", 1.0)):
        layers = params[head]["layers"]
        for i, length in enumerate((1.0, 1.0, last)):
            lengths = jnp.linalg.norm(layers[i]["kernel"], axis=1)
            np.testing.assert_allclose(lengths, jnp.full_like(lengths, length), rtol=1e-5)
            assert not layers[i]["bias"].any()


def test_an_unknown_initializer_names_the_known_ones():
    with pytest.raises(ValueError, match="initializer must be one of orthogonal, normc, got 'x'"):
        networks.actor_critic(Box(-1.0, 1.0, (3,)), Discrete(2), initializer="x")


def test_widening_moves_the_deviation_only():
    network = networks.actor_critic(Box(-1.0, 1.0, (3,)), Box(-1.0, 1.0, (2,)), (4,))
    params = network.init(jax.random.key(0))
    wide = networks.widen(params, -1.5)
    np.testing.assert_array_equal(wide["head"]["log_std"], np.full(2, -1.5, np.float32))
    jax.tree.map(np.testing.assert_array_equal, {**wide, "head": 0}, {**params, "head": 0})
