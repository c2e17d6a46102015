"""Aggregations against verl's agg_loss and TRL's loss types, whole and in microbatches."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import close, golden
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from jrl import train
from jrl.losses import aggregation, kl, token_policy

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)
weigh = jax.jit(
    aggregation.token_weights, static_argnames=("aggregation", "max_length", "count_empty")
)
HOLES = jnp.array([[1, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool)


def aggregate(losses, weights):
    return jnp.sum(weights.token * losses) / jnp.sum(weights.row)


# Against verl


@pytest.mark.parametrize(
    ("mode", "choice"),
    [
        ("token-mean", {"aggregation": "token-mean"}),
        ("seq-mean-token-mean", {"aggregation": "sequence-mean"}),
        ("seq-mean-token-sum-norm", {"aggregation": "constant", "max_length": 6}),
        ("seq-mean-token-sum", {"aggregation": "constant", "max_length": 1}),
    ],
)
def test_aggregates_equal_verl_with_their_gradients(mode, choice):
    inputs, outputs = golden("verl_tokens", f"aggregation_{mode}")
    losses, weights = jnp.asarray(inputs["losses"]), weigh(jnp.asarray(inputs["mask"]), **choice)
    value, grad = jax.jit(jax.value_and_grad(lambda x: aggregate(x, weights)))(losses)
    close(value, outputs["value"])
    close(grad, outputs["grad"])


# Against TRL, in one microbatch and in four


CASES = {
    "grpo": {"aggregation": "sequence-mean", "count_empty": True},
    "bnpo": {"aggregation": "token-mean"},
    "dapo": {"aggregation": "token-mean"},
    "dr_grpo": {"aggregation": "constant", "max_length": 10, "count_empty": True},
    "dapo_kl": {"aggregation": "token-mean"},
    "gspo": {"aggregation": "sequence-mean", "count_empty": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("microbatches", [1, 4])
def test_microbatches_give_the_loss_of_trl_on_the_whole_batch(case, microbatches):
    # Rows of 4, 3, 1, 4, 0, 6, 2 and 4 tokens: means of means would differ.
    inputs, outputs = golden("trl_tokens", case)
    assert int(inputs.pop("max_length")) == 10
    columns = {name: jnp.asarray(x) for name, x in inputs.items()}
    columns["weights"] = weigh(columns["mask"], **CASES[case])
    columns["kind"] = jnp.arange(48).reshape(8, 6) % 5
    clip = {"level": "sequence", "eps_low": 0.1, "eps_high": 0.15} if case == "gspo" else {}

    def objective(params, extra, batch, key, hp):
        log_probs = batch["log_probs"] + params[batch["kind"]]
        losses = token_policy.clipped_token_surrogate(
            log_probs, batch["old_log_probs"], batch["advantages"], batch["mask"], **clip
        )
        if case == "dapo_kl":
            losses += 0.5 * kl.kl_k3(log_probs, batch["ref_log_probs"])
        weights = batch["weights"]
        return train.Loss(jnp.sum(weights.token * losses), jnp.sum(weights.row))

    grad_fn = jax.jit(train.gradient(objective, microbatches))
    grads, loss = grad_fn(jnp.zeros(5), (), columns, jax.random.key(0), None)
    close(loss.mean, outputs["loss"])
    by_kind = [outputs["grad"][np.asarray(columns["kind"]) == k].sum() for k in range(5)]
    close(grads, np.array(by_kind))


# By hand


def test_three_aggregates_by_hand():
    losses = jnp.array([[1.0, 100.0, 2.0, 3.0], [100.0] * 4, [10.0, 100.0, 100.0, 100.0]])
    assert float(aggregate(losses, weigh(HOLES, "token-mean"))) == 4.0
    assert float(aggregate(losses, weigh(HOLES, "sequence-mean"))) == 6.0
    assert float(aggregate(losses, weigh(HOLES, "sequence-mean", count_empty=True))) == 4.0
    assert float(aggregate(losses, weigh(HOLES, "constant", max_length=8))) == 1.0
    constant = weigh(HOLES, "constant", max_length=8, count_empty=True)
    close(constant.row, np.array([8.0, 8.0, 8.0]))
    close(constant.token, HOLES.astype(np.float32))


def test_where_weights_add_up_to_their_rows():
    for name in ("token-mean", "sequence-mean"):
        weights = weigh(HOLES, name)
        close(weights.token.sum(-1), weights.row)
        assert not np.any(np.asarray(weights.token)[~np.asarray(HOLES)])


def test_padding_changes_nothing():
    wide = jnp.pad(HOLES, ((0, 2), (0, 3)))
    for choice in ({"aggregation": "sequence-mean"}, {"aggregation": "constant", "max_length": 9}):
        narrow, padded = weigh(HOLES, **choice), weigh(wide, **choice)
        close(padded.token[:3, :4], narrow.token)
        close(padded.row, np.pad(np.asarray(narrow.row), (0, 2)))


# Packed rows


@few
@given(seed=seeds, count_empty=st.booleans())
def test_packed_rows_weigh_like_rows_of_their_own(seed, count_empty):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 5, 4)
    mask = (np.arange(4) < lengths[:, None]) & (rng.uniform(size=(4, 4)) < 0.6)
    real = np.arange(4) < lengths[:, None]
    packed, ids = np.zeros((2, 18), bool), np.zeros((2, 18), int)
    packed[0, : lengths.sum()] = mask[real]
    ids[0, : lengths.sum()] = np.repeat(np.arange(1, 5), lengths)
    for name in ("token-mean", "sequence-mean", "constant"):
        choice = {"aggregation": name, "max_length": 4, "count_empty": count_empty}
        one = weigh(jnp.asarray(mask), **choice)
        many = weigh(jnp.asarray(packed), segment_ids=jnp.asarray(ids), **choice)
        close(many.token[0, : lengths.sum()], np.asarray(one.token)[real])
        # A row of padding alone is no sequence, even where empty ones count.
        close(many.row, np.array([np.sum(one.row), 0.0], np.float32))


# What raises


@pytest.mark.parametrize("unwrap", [False, True], ids=["jaxtyping", "chex"])
def test_wrong_input_raises(unwrap):
    f = inspect.unwrap(aggregation.token_weights) if unwrap else aggregation.token_weights
    with pytest.raises((AssertionError, TypeCheckError)):
        f(jnp.ones((2, 3)))
    with pytest.raises((AssertionError, TypeCheckError)):
        f(HOLES, "sequence-mean", segment_ids=jnp.ones((2, 2), int))
    with pytest.raises((ValueError, TypeCheckError), match="mean" if unwrap else None):
        f(HOLES, "mean")
    for max_length in (None, 0):
        with pytest.raises(ValueError, match="max_length must be the longest possible"):
            f(HOLES, "constant", max_length)
