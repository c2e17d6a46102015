"""Pytree helpers against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrl import tree


def example():
    return {"a": jnp.arange(24.0).reshape(2, 3, 4), "b": (jnp.arange(6).reshape(2, 3),)}


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_select_covers_the_leading_axes(shape):
    condition = np.random.default_rng(0).random(shape) < 0.5
    x = example()
    y = jax.tree.map(lambda leaf: -leaf - 1, x)
    chosen = jax.jit(tree.select)(condition, x, y)
    for index in np.ndindex(*shape):
        want = x if condition[index] else y
        jax.tree.map(lambda c, w, i=index: np.testing.assert_array_equal(c[i], w[i]), chosen, want)


def test_select_takes_keys():
    a, b = jax.random.split(jax.random.key(0), 4), jax.random.split(jax.random.key(1), 4)
    chosen = tree.select(jnp.array([True, False, True, False]), a, b)
    data = jax.random.key_data
    np.testing.assert_array_equal(data(chosen)[::2], data(a)[::2])
    np.testing.assert_array_equal(data(chosen)[1::2], data(b)[1::2])


def test_cast_changes_floats_only():
    cast = tree.cast(example(), jnp.bfloat16)
    assert cast["a"].dtype == jnp.bfloat16 and cast["b"][0].dtype == jnp.int32
    x = example()
    assert tree.cast(x, None) is x


def test_axes():
    x = example()
    assert tree.flatten_axes(x)["a"].shape == (6, 4)
    assert tree.flatten_axes(x)["b"][0].tolist() == list(range(6))
    assert tree.flatten_axes({"a": x["a"]}, 3)["a"].shape == (24,)
    np.testing.assert_array_equal(tree.swap_axes(x)["a"], np.swapaxes(x["a"], 0, 1))
    np.testing.assert_array_equal(tree.take(x, 1)["a"], x["a"][1])
    assert tree.size(x) == 30
