"""Keys for large batches: distinct, uniform, and independent of one another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jrl import rng

KEY = jax.random.key(3)


def words(keys):
    return np.asarray(jax.random.key_data(keys)).reshape(-1, 2)


def test_all_keys_differ():
    keys = jax.jit(rng.batch_keys, static_argnums=1)(KEY, (64, 1024))
    assert keys.shape == (64, 1024)
    assert len(np.unique(words(keys), axis=0)) == 64 * 1024


def test_batches_of_consecutive_steps_share_no_key():
    """As a rollout draws them: one batch for each key of a split."""
    batches = jax.vmap(lambda key: rng.batch_keys(key, (2, 128)))(jax.random.split(KEY, 256))
    assert len(np.unique(words(batches), axis=0)) == 256 * 256


def test_the_words_wrap_around():
    """Counting is modulo 2^32, so a base near the end makes no equal keys."""
    key = next(
        key
        for seed in range(100_000)
        if (key := jax.random.key(seed)) is not None
        and int(jax.random.bits(key, (2,), jnp.uint32)[1]) > 2**32 - 2**20
    )
    assert len(np.unique(words(rng.batch_keys(key, (2**20,))), axis=0)) == 2**20


def test_draws_are_uniform():
    keys = rng.batch_keys(KEY, (50_000,))
    draws = np.asarray(jax.vmap(jax.random.uniform)(keys))
    assert scipy.stats.kstest(draws, "uniform").pvalue > 1e-3
    counts = np.histogram(draws, 100, (0, 1))[0]
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    bits = np.asarray(jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(keys))
    ones = [int((bits >> i & 1).sum()) for i in range(32)]
    # 32 fair coins thrown 50 000 times each: five standard deviations.
    assert np.abs(np.array(ones) - 25_000).max() < 5 * np.sqrt(50_000 / 4)


@pytest.mark.parametrize("lag", [1, 2, 3, 128, 4096])
def test_neighbouring_keys_give_uncorrelated_draws(lag):
    keys = rng.batch_keys(KEY, (20_000,))
    x = np.asarray(jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys))
    a, b = x[:-lag], x[lag:]
    # Every component against every component of the key `lag` further on, and their squares.
    for f in (lambda v: v, np.square):
        r = np.corrcoef(f(a).T, f(b).T)[:4, 4:]
        assert np.abs(r).max() < 5 / np.sqrt(len(a))


def test_split_or_fold_in_of_neighbours_does_not_meet():
    keys = rng.batch_keys(KEY, (512,))
    children = jax.vmap(lambda key: jax.random.split(key, 16))(keys)
    assert len(np.unique(np.r_[words(keys), words(children)], axis=0)) == 512 * 17


def test_other_generators_are_split():
    key = jax.random.key(0, impl="rbg")
    keys = rng.batch_keys(key, (2, 3))
    expected = jax.random.split(key, (2, 3))
    np.testing.assert_array_equal(jax.random.key_data(keys), jax.random.key_data(expected))


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_fast_keys_draw_what_jax_draws(seed):
    """jax's own threefry is the reference, bit for bit, alone and under jit and vmap."""
    key = jax.random.key(seed)
    draws = {
        "bits": lambda k: jax.random.bits(k, (3, 5), jnp.uint32),
        "bytes": lambda k: jax.random.bits(k, (7,), jnp.uint8),
        "shorts": lambda k: jax.random.bits(k, (7,), jnp.uint16),
        "normal": lambda k: jax.random.normal(k, (33,)),
        "randint": lambda k: jax.random.randint(k, (9,), 0, 7),
        "permutation": lambda k: jax.random.permutation(k, 100),
        "split": lambda k: jax.random.key_data(jax.random.split(k, (2, 3))),
        "fold_in": lambda k: jax.random.key_data(jax.random.fold_in(k, 12345)),
        "batched": lambda k: jax.vmap(jax.random.uniform)(jax.random.split(k, 4)),
    }
    for name, draw in draws.items():
        np.testing.assert_array_equal(draw(rng.fast(key)), draw(key), err_msg=name)
        np.testing.assert_array_equal(jax.jit(draw)(rng.fast(key)), draw(key), err_msg=name)
    batch = rng.batch_keys(key, (4,))
    ours = jax.vmap(lambda k: jax.random.normal(k, (2,)))(batch)
    np.testing.assert_array_equal(
        ours, jax.vmap(lambda k: jax.random.normal(k, (2,)))(rng.portable(batch))
    )


def test_fast_leaves_other_generators_alone_and_portable_undoes_it():
    other = jax.random.key(0, impl="rbg")
    assert rng.fast(other) is other
    tree = {"key": rng.fast(KEY), "x": jnp.ones(2), "n": 3}
    back = rng.portable(tree)
    assert back["key"].dtype == KEY.dtype and back["x"] is tree["x"] and back["n"] == 3
    np.testing.assert_array_equal(words(back["key"]), words(KEY))


@pytest.mark.parametrize("n", [1, 2, 3, 512, 1000, 8192, 70_000])
def test_a_permutation_holds_every_number_once(n):
    order = jax.jit(rng.permutation, static_argnums=1)(jax.random.key(n), n)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


def test_all_orders_are_equally_likely():
    """Chi-square over the 24 orders of four, and over where each of 64 numbers ends up."""
    keys = jax.random.split(jax.random.key(3), 24_000)
    orders = np.asarray(jax.jit(jax.vmap(lambda k: rng.permutation(k, 4)))(keys))
    _, counts = np.unique(orders @ [64, 16, 4, 1], return_counts=True)
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    places = np.asarray(jax.jit(jax.vmap(lambda k: rng.permutation(k, 64)))(keys[:6400]))
    for number in (0, 31, 63):
        counts = np.bincount(np.argwhere(places == number)[:, 1], minlength=64)
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_neighbours_do_not_keep_their_order():
    """Where ties are common, n = 70 000 with 15 random bits, rounds make up for it."""
    order = np.asarray(rng.permutation(jax.random.key(5), 70_000))
    place = np.argsort(order)
    kept = np.mean(place[1:] > place[:-1])
    np.testing.assert_allclose(kept, 0.5, atol=4 * 0.5 / np.sqrt(70_000))


@pytest.mark.parametrize("n", [0, 2**24 + 1])
def test_a_permutation_of_too_many_names_the_number(n):
    with pytest.raises(ValueError, match="n must be between"):
        rng.permutation(jax.random.key(0), n)
