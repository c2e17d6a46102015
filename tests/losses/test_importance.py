"""Importance weights between sampler and trainer: verl, TRL's modes as a loop, extremes."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import close, golden, through_jit_and_vmap
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from jrl.losses import importance, tokens

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)
levels = st.sampled_from(["token", "sequence", "sequence-mean"])
outsides = st.sampled_from(["truncate", "mask"])
weigh = jax.jit(importance.importance_weights, static_argnames=("level", "outside"))


def draw(seed, rows=3, length=6):
    rng = np.random.default_rng(seed)
    log_probs, sampler = rng.normal(0, 0.5, (2, rows, length)).astype(np.float32)
    return [jnp.asarray(x) for x in (log_probs, sampler, rng.uniform(size=(rows, length)) < 0.7)]


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("outside", ["truncate", "mask"])
def test_weights_equal_verl(level, outside):
    inputs, outputs = golden("verl_tokens", f"importance_{level}_{outside}")
    low = 0.6 if outside == "mask" else 0.0

    def weights(*args):
        return weigh(*args, level, outside, 1.5, low)

    out = through_jit_and_vmap(weights, *inputs.values())
    close(out, outputs["weights"])
    assert len(np.unique(np.asarray(out))) > 3


def loop(log_probs, sampler, mask, level, outside, high, low):
    """TRL's four modes, one row at a time, and the geometric mean besides."""
    out = np.zeros_like(log_probs)
    for i, kept in enumerate(mask):
        if not kept.any():
            continue
        difference = (log_probs[i] - sampler[i])[kept]
        if level == "sequence":
            difference = np.full_like(difference, difference.sum())
        if level == "sequence-mean":
            difference = np.full_like(difference, difference.mean())
        ratio = np.exp(difference)
        rejected = (ratio > high) | (ratio < low)
        out[i, kept] = (
            np.clip(ratio, low, high) if outside == "truncate" else np.where(rejected, 0, ratio)
        )
    return out


@few
@given(seed=seeds, level=levels, outside=outsides)
def test_weights_equal_a_loop(seed, level, outside):
    args = draw(seed)
    out = weigh(*args, level, outside, 1.3, 0.8)
    close(out, loop(*map(np.asarray, args), level, outside, 1.3, 0.8))


@few
@given(seed=seeds, level=levels, outside=outsides)
def test_nothing_behind_the_mask_matters_and_nothing_has_a_gradient(seed, level, outside):
    log_probs, sampler, mask = draw(seed)
    clean = weigh(log_probs, sampler, mask, level, outside)
    dirty = jnp.where(mask, log_probs, jnp.nan), jnp.where(mask, sampler, -jnp.inf)
    close(weigh(*dirty, mask, level, outside), clean)
    grads = jax.grad(lambda x: weigh(*x, mask, level, outside).sum())((log_probs, sampler))
    assert not any(np.any(grad) for grad in grads)


@few
@given(seed=seeds, level=levels, outside=outsides)
def test_packed_sequences_have_their_own_weights(seed, level, outside):
    args = draw(seed, rows=4)
    ids = jnp.tile(jnp.repeat(jnp.array([1, 2]), 6), (2, 1))
    packed = weigh(*(x.reshape(2, 12) for x in args), level, outside, segment_ids=ids)
    close(packed, np.reshape(weigh(*args, level, outside), (2, 12)))


def test_equal_policies_weigh_one():
    x, mask = jnp.array([[-3.0, -0.5, -7.0]]), jnp.array([[True, True, False]])
    for level in ("token", "sequence", "sequence-mean"):
        close(weigh(x, x, mask, level, "mask"), np.array([[1.0, 1.0, 0.0]]))


def test_long_sequences_overflow_nothing():
    # exp(4000) and exp(-4000): capped, or dropped.
    log_probs, mask = jnp.array([[1.0], [-1.0]]) * jnp.ones((2, 4000)), jnp.ones((2, 4000), bool)
    sampler = jnp.zeros((2, 4000))
    capped = weigh(log_probs, sampler, mask, "sequence", "truncate", 3.0)
    close(capped[:, 0], np.array([3.0, 0.0]))
    dropped = weigh(log_probs, sampler, mask, "sequence", "mask", 3.0, 0.1)
    close(dropped[:, 0], np.zeros(2))
    mean = weigh(log_probs, sampler, mask, "sequence-mean", "truncate", jnp.inf)
    close(mean[:, 0], np.exp([1.0, -1.0]), rtol=1e-4)


def test_rejected_tokens_stay_in_the_divisor():
    # As in TRL and AReaL: the weight multiplies the loss, the mask is what is counted.
    log_probs, sampler = jnp.log(jnp.array([0.9, 0.5])), jnp.log(jnp.array([0.1, 0.5]))
    weights = weigh(log_probs, sampler, jnp.ones(2, bool), outside="mask")
    assert float(tokens.masked_mean(weights * 3.0, jnp.ones(2, bool))) == 1.5


def test_bounds_map_as_hyper_parameters():
    args = draw(0)
    out = jax.vmap(lambda high: weigh(*args, high=high))(jnp.array([1.0, 2.0]))
    close(out[0], weigh(*args, high=1.0))
    close(out[1], weigh(*args, high=2.0))


@pytest.mark.parametrize("unwrap", [False, True], ids=["jaxtyping", "chex"])
def test_wrong_input_raises(unwrap):
    f = importance.importance_weights
    f, x, m = inspect.unwrap(f) if unwrap else f, jnp.ones((2, 3)), jnp.ones((2, 3), bool)
    for args in ((x, x[:1], m), (x, x, x), (m, x, m), (x, x, m, "token", "mask", jnp.ones(2))):
        with pytest.raises((AssertionError, TypeCheckError)):
            f(*args)
    for name in ("level", "outside"):
        with pytest.raises((ValueError, TypeCheckError), match=name):
            f(x, x, m, **{name: "clip"})
