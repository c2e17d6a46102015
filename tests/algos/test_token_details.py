"""Details of language-model algorithms: what is refused, what is read, and in which dtype."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from given import given_text
from invariance import jit
from token_cases import CASES, MODEL, PLAIN, model_params, parts, prepare

from jrl import tree
from jrl.algos import dpo, grpo, rlhf_ppo
from jrl.lm import transformer
from jrl.lm.config import Config
from jrl.lm.policy import Frozen

KEY = jax.random.key(0)


def test_long_answers_keep_the_sign_of_their_difference():
    """4096 tokens of about -10 nats, the reference a millionth away from the policy at each."""
    rng = np.random.default_rng(0)
    shape = (4, 4096)
    ours = rng.uniform(-20, 0, shape).astype(np.float32)
    ref = (ours - rng.choice([4e-6, -3e-6], shape)).astype(np.float32)
    gap = (ours.astype(np.float64) - ref).sum(axis=1)
    policy, text = given_text(np.ones((2, 4096), bool))
    batch = dpo.Batch(text, text, jnp.asarray(ref[:2]), jnp.asarray(ref[2:]))
    objective, hp = dpo.make_objective(policy, dpo.Config()), dpo.Hyper(beta=1.0)
    loss = jit(objective)(jnp.asarray(ours), Frozen(), batch, KEY, hp)
    chosen, rejected = gap.reshape(2, 2).sum(axis=1)
    np.testing.assert_allclose(loss.metrics["chosen_reward"][0], chosen, rtol=1e-3)
    np.testing.assert_allclose(loss.metrics["rejected_reward"][0], rejected, rtol=1e-3)
    np.testing.assert_allclose(loss.metrics["margin"][0], chosen - rejected, rtol=1e-3)
    right = np.log1p(np.exp(-(gap[:2] - gap[2:]))).sum()
    np.testing.assert_allclose(loss.total, right, rtol=1e-6)


def start(module, config, hp, frozen=None):
    """Begins with a plain model."""
    return module.make(PLAIN, config).init(KEY, model_params(0), frozen or Frozen(), hp)


def test_a_penalty_needs_a_reference():
    config = grpo.Config()
    for beta in (0.1, np.float32(0.1), jnp.array([0.0, 0.1])):
        with pytest.raises(ValueError, match=r"frozen\.reference: missing, hyper\.beta must be 0"):
            start(grpo, config, grpo.Hyper(beta=beta))
    start(grpo, config, grpo.Hyper(beta=0.0))
    start(grpo, config, grpo.Hyper(beta=0.1), Frozen(reference=model_params(0)))
    # Nothing is known of a traced number.
    jax.eval_shape(lambda beta: start(grpo, config, grpo.Hyper(beta=beta)), 0.1)


def test_a_reference_of_another_configuration_is_refused():
    config = Config(vocab_size=12, num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8)
    config = dataclasses.replace(config, mlp_width=24)
    other = jax.eval_shape(transformer.make(config).init, KEY)
    words = (
        r"frozen\.reference: not of the policy's shape, first at embedding: "
        "give the parameters of the same configuration"
    )
    with pytest.raises(ValueError, match=words):
        start(dpo, dpo.Config(), dpo.Hyper(), Frozen(reference=other))
    start(dpo, dpo.Config(), dpo.Hyper(), Frozen(reference=model_params(1)))


@pytest.mark.parametrize("advantage", ["grpo", "dr_grpo", "rloo", "batch_std"])
def test_an_answer_alone_has_no_group_to_be_compared_with(advantage):
    words = f"config.group_size must be at least 2 with advantage='{advantage}'.*'whiten' compares"
    with pytest.raises(ValueError, match=words):
        grpo.Config(group_size=1, advantage=advantage).validate()
    grpo.Config(group_size=2, advantage=advantage).validate()
    grpo.Config(group_size=1, advantage="whiten").validate()


def test_cispo_does_not_take_the_bounds_of_another_loss():
    with pytest.raises(ValueError, match=r"hyper\.eps_low must be at least 1 with loss='cispo'"):
        start(grpo, grpo.Config(loss="cispo"), grpo.Hyper())
    start(grpo, grpo.Config(loss="cispo"), grpo.Hyper(eps_low=1.0, eps_high=4.0))


def test_simpo_does_not_take_the_beta_of_another_loss():
    with pytest.raises(ValueError, match=r"hyper\.beta must be at least 1 with loss='simpo'"):
        start(dpo, dpo.Config(loss="simpo"), dpo.Hyper())
    start(dpo, dpo.Config(loss="simpo"), dpo.Hyper(beta=2.0))
    start(dpo, dpo.Config(loss="orpo"), dpo.Hyper())


def test_a_base_is_read_as_the_reference_only_where_beta_is_positive():
    name = "grpo of adapters"
    case, _, state, _, batch = parts(name)

    def differs(beta, frozen=state.extra):
        hp = case.hyper.replace(beta=beta)
        columns, _ = prepare(name, state.replace(extra=frozen), batch, hp)
        return bool(jnp.any(columns.ref_log_probs != columns.old_log_probs))

    assert differs(0.1) and not differs(0.0)
    # Who gives a reference wants to know how far it is.
    assert differs(0.0, state.extra.replace(reference=state.extra.base))


@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_every_model_computes_in_the_dtype_of_the_config(name, compute):
    """Whatever the frozen ones are kept in; nothing is compiled, let alone run."""
    case, _, state, _, batch = parts(name)
    seen = set()

    def look(function):
        def looking(params, *args):
            seen.update(x.dtype.name for x in jax.tree.leaves(params))
            return function(params, *args)

        return looking

    model = MODEL._replace(hidden=look(MODEL.hidden), head=look(MODEL.head))
    policy = case.policy._replace(model=model)
    updater = case.module.make(policy, dataclasses.replace(case.config, compute_dtype=compute))
    frozen = "float32" if compute == "bfloat16" else "bfloat16"
    extra = state.extra
    if case.module is rlhf_ppo:
        extra = extra.replace(frozen=tree.cast(extra.frozen, frozen))
    else:
        extra = tree.cast(extra, frozen)

    def all_of_it(state, batch):
        columns, _ = updater.prepare(state, batch, case.hyper)
        return updater.update(state, columns, case.hyper), updater.evaluate(
            state, batch, case.hyper
        )

    jax.eval_shape(all_of_it, state.replace(extra=extra), batch)
    assert seen == {compute}
