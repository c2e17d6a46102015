"""What holds for every objective of a language model, at every setting that changes its maths.

Packed rows are a matter of SFT: a pair of answers is a row of each batch, and a reward, a group
and a reward model's score belong to a row, so that the others take one text a row.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from invariance import gradient, jit, same, same_metrics
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from token_cases import CASES, GROUP, LENGTH, ROWS, batch_of, parts, prepare
from traces import count_traces

from jrl import tree
from jrl.algos import dpo, grpo, rlhf_ppo
from jrl.lm.policy import RolloutBatch, TokenBatch

RATIOS = [name for name, case in CASES.items() if case.module in (grpo, rlhf_ppo)]
FROZEN = [name for name, case in CASES.items() if case.adapters]

# What the others differ in is done to single examples, before or after they are summed.
ALIKE = ("dpo robust", "dpo hinge", "orpo")
SUMS = [name for name in CASES if name not in (*ALIKE, *FROZEN[1:])]
COUPLED = ["sft", "reward model", "dpo", "grpo", "gspo", "rloo", "whitened", "ppo, one trunk"]
UPDATED = ["sft", "reward model", "dpo", "grpo", "ppo, one trunk", "sft of adapters"]


@functools.cache
def expected(name):
    """Columns, their metrics and (gradient, loss) of a case as it is."""
    case, objective, state, moved, batch = parts(name)
    columns, measured = prepare(name, state, batch)
    return columns, measured, gradient(objective, moved, columns, case.hyper)


def check(name, batch, microbatches=1, place=lambda x: x):
    """Compares what a batch gives with what the case's own gives."""
    case, objective, state, moved, _ = parts(name)
    columns, measured = prepare(name, place(state), batch, microbatches=microbatches)
    found = gradient(objective, place(moved), columns, case.hyper, microbatches)
    _, measured_before, before = expected(name)
    same_metrics(measured, measured_before)
    same(found, before, 2e-5)


def texts(batch, change):
    """Applies a function to every `TokenBatch`."""

    def is_text(x):
        return isinstance(x, TokenBatch)

    return jax.tree.map(lambda x: change(x) if is_text(x) else x, batch, is_leaf=is_text)


def frozen_of(case, state):
    return state.extra.frozen if case.module is rlhf_ppo else state.extra


def norm(grads):
    return float(jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(grads))))


@pytest.mark.parametrize("name", CASES)
def test_there_is_something_to_compare(name):
    _, _, (grads, loss) = expected(name)
    assert norm(grads) > 0.05 and abs(float(loss.mean)) > 1e-3
    if name in RATIOS:
        assert 0 < loss.metrics["clipped"][0] < loss.metrics["clipped"][1]


@pytest.mark.parametrize("name", SUMS)
def test_one_and_four_microbatches(name):
    check(name, parts(name).batch, 4)


@pytest.mark.parametrize("name", COUPLED)
def test_one_and_eight_devices(name):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    batch = jax.device_put(parts(name).batch, NamedSharding(mesh, PartitionSpec("data")))
    check(name, batch, place=lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec())))


@pytest.mark.parametrize("name", SUMS)
def test_more_padding(name):
    check(name, batch_of(CASES[name].module, LENGTH + 3))


@pytest.mark.parametrize("name", CASES)
def test_junk_in_padding(name):
    """Ids that are none, no log-probabilities and rewards that nobody knows."""

    def junk(text):
        ids = jnp.where(jnp.arange(LENGTH) % 2 == 0, -1, 10**6)[None]
        padding = text.segment_ids == 0
        return text.replace(
            tokens=jnp.where(padding, ids, text.tokens),
            positions=jnp.where(padding, 77, text.positions),
        )

    batch = texts(parts(name).batch, junk)
    if isinstance(batch, RolloutBatch):
        batch = batch.replace(
            sampler_log_probs=jnp.where(batch.text.mask, batch.sampler_log_probs, jnp.nan),
            rewards=jnp.where(batch.known, batch.rewards, jnp.nan),
        )
    check(name, batch)


@pytest.mark.parametrize("name", RATIOS)
@pytest.mark.parametrize("junk", [-1e4, 1e4])
def test_junk_behind_the_mask_of_columns(name, junk):
    case, objective, _, moved, _ = parts(name)
    columns, _, before = expected(name)
    mask = columns.text.mask

    def spoil(x):
        of_tokens = x.shape == mask.shape and jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.where(mask, x, junk) if of_tokens else x

    spoiled = jax.tree.map(spoil, columns)
    if case.module is grpo:
        spoiled = spoiled.replace(weights=columns.weights)
    same(gradient(objective, moved, spoiled, case.hyper), before)


@pytest.mark.parametrize("name", CASES)
def test_the_order_of_rows_does_not_matter(name):
    order = np.random.default_rng(0).permutation(ROWS)
    check(name, tree.take(parts(name).batch, order))


@pytest.mark.parametrize("name", ["sft", "sft of adapters"])
def test_packed_rows(name):
    """Two texts in each row, and what was padding between them cut out."""
    text = jax.tree.map(np.asarray, parts(name).batch)
    packed = jax.tree.map(lambda x: np.zeros((ROWS // 2, 2 * LENGTH), x.dtype), text)
    for row in range(ROWS // 2):
        begin = 0
        for segment, i in enumerate((row, ROWS - 1 - row), 1):
            length = int(text.segment_ids[i].sum())
            here = slice(begin, begin + length)
            for field in ("tokens", "mask", "positions"):
                getattr(packed, field)[row, here] = getattr(text, field)[i, :length]
            packed.segment_ids[row, here] = segment
            begin += length
    check(name, jax.tree.map(jnp.asarray, packed))


@pytest.mark.parametrize("name", [name for name in RATIOS if CASES[name].module is grpo])
def test_groups_of_equal_rewards(name):
    """They are counted; where only rewards teach, they teach nothing, not even NaN."""
    case, objective, state, moved, batch = parts(name)
    hp = case.hyper.replace(beta=0.0, entropy_coef=0.0, overlong_penalty=0.0)
    if case.config.advantage == "whiten":
        rewards = jnp.full(ROWS, 0.5)
    else:
        rewards = jnp.asarray([0.3, 0.7])[batch.group_ids]
    batch = batch.replace(rewards=jnp.where(batch.known, rewards, jnp.nan))
    columns, measured = prepare(name, state, batch, hp)
    assert measured["equal_groups"] == (ROWS // GROUP, ROWS // GROUP)
    grads, loss = gradient(objective, moved, columns, hp)
    assert norm(grads) == 0 and float(loss.total) == 0 and float(loss.weight) > 0


@pytest.mark.parametrize("name", RATIOS)
def test_rewards_that_nobody_knows(name):
    case, objective, state, moved, batch = parts(name)
    batch = batch.replace(rewards=jnp.full(ROWS, jnp.nan), known=jnp.zeros(ROWS, bool))
    columns, measured = prepare(name, state, batch)
    assert measured["unknown_rewards"] == (ROWS, ROWS)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((columns, measured)))
    grads, loss = gradient(objective, moved, columns, case.hyper)
    assert norm(grads) == 0 and float(loss.weight) == 0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(loss))


@pytest.mark.parametrize("name", UPDATED)
def test_updates_in_half_precision_are_traced_once(name):
    case, _, state, _, batch = parts(name)
    inner = {"epochs": 2, "minibatches": 2} if name in RATIOS else {}
    updater = case.updater(compute_dtype="bfloat16", microbatches=2, **inner)

    def one(state, batch, hp):
        columns, measured = updater.prepare(state, batch, hp)
        state, sums = updater.update(state, columns, hp)
        return state, measured | sums

    step = count_traces(one, jit)
    types = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state.replace(key=()))
    new = state
    for rate in (1e-2, 1e-3, 0.0):
        new, sums = step(new, batch, case.hyper.replace(learning_rate=rate))
        assert float(sums["skipped"][0]) == 0
        for x in jax.tree.leaves((sums, new.params)):
            assert x.dtype == jnp.float32 and np.all(np.isfinite(x))
    assert types == jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), new.replace(key=()))
    jax.tree.map(np.testing.assert_array_equal, frozen_of(case, new), frozen_of(case, state))
    moves = jax.tree.map(lambda x, y: float(jnp.max(jnp.abs(x - y))), new.params, state.params)
    assert all(x > 1e-3 for x in jax.tree.leaves(moves)), moves


@pytest.mark.parametrize("name", FROZEN)
def test_what_is_frozen_has_no_gradient(name):
    case, objective, state, moved, _ = parts(name)
    columns, *_ = expected(name)

    @jit
    def of_extra(extra):
        return jax.grad(lambda x: objective(moved.params, x, columns, state.key, case.hyper).total)(
            extra
        )

    frozen = of_extra(state.extra)
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(frozen))


@pytest.mark.parametrize("name", [n for n in FROZEN if CASES[n].module in (dpo, grpo, rlhf_ppo)])
def test_the_base_is_the_reference_unless_another_is_given(name):
    case, _, state, _, batch = parts(name)
    frozen = frozen_of(case, state)
    columns, *_ = expected(name)

    def columns_of(reference):
        new = frozen.replace(reference=reference)
        extra = state.extra.replace(frozen=new) if case.module is rlhf_ppo else new
        return prepare(name, state.replace(extra=extra), batch)[0]

    def apart(x, y):
        return float(np.max(np.abs(np.asarray(x, np.float32) - np.asarray(y, np.float32))))

    same_columns = jax.tree.map(apart, columns_of(frozen.base), columns)
    assert max(jax.tree.leaves(same_columns)) < 1e-5
    other = columns_of(jax.tree.map(lambda x: 0.9 * x, frozen.base))
    assert max(jax.tree.leaves(jax.tree.map(apart, other, columns))) > 0.01


def test_ratios_of_gspo_are_those_of_whole_answers():
    case, _, _, moved, _ = parts("gspo")
    columns, _, (_, loss) = expected("gspo")
    temperature = case.hyper.temperature
    read = jit(lambda x: case.policy.log_probs(x, (), columns.text, temperature).log_probs_BxL)
    change = np.asarray(read(moved.params) - columns.old_log_probs)
    ratios = []
    for row, mask in zip(change, np.asarray(columns.text.mask), strict=True):
        ratios += [np.exp(row[mask].mean())] * mask.sum() if mask.any() else []
    outside = sum(not 0.9 <= x <= 1.1 for x in ratios)
    np.testing.assert_allclose(loss.metrics["ratio"], (sum(ratios), len(ratios)), rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["clipped"], (outside, len(ratios)))


def test_cispo_has_no_ratios_of_answers():
    with pytest.raises(ValueError, match="config.level must be 'token' with loss='cispo'"):
        grpo.Config(loss="cispo", level="sequence").validate()


def test_an_adaptive_price_counts_the_answers_whose_reward_is_known():
    name = "ppo, one trunk"
    case, _, state, _, batch = parts(name)
    update = jit(case.updater(epochs=1).update)
    for known in (batch.known, jnp.zeros(ROWS, bool)):
        columns, measured = prepare(name, state, batch.replace(known=known))
        after, _ = update(state, columns, case.hyper)
        n = int(known.sum())
        # Sums of the answers in float64; no answer says nothing about the price.
        mean = np.asarray(columns.divergence, np.float64)[np.asarray(known)].sum() / max(n, 1)
        np.testing.assert_allclose(measured["divergence"], (mean * n, n), rtol=1e-4)
        error = np.clip(mean / 6.0 - 1, -0.2, 0.2)
        np.testing.assert_allclose(
            after.extra.penalty.beta, 0.05 * (1 + error * n / 10_000), rtol=1e-6
        )
    assert float(after.extra.penalty.beta) == float(state.extra.penalty.beta)
