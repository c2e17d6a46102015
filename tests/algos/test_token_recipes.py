"""Recipes of other libraries give the numbers of those libraries."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from given import given_text
from invariance import gradient

from jrl import train
from jrl.algos import dpo, grpo, rlhf_ppo
from jrl.lm.policy import Frozen
from jrl.losses import aggregation, token_returns, tokens
from jrl.losses.trust_region import init_proportional_kl

GOLDENS = pathlib.Path(__file__).parents[1] / "losses" / "goldens"
RECIPES = [
    *((grpo, like) for like in ("trl", "verl", "tunix", "areal")),
    *((rlhf_ppo, like) for like in ("trl", "verl", "tunix", "areal")),
    *((dpo, like) for like in ("trl", "tunix", "areal")),
]


@functools.cache
def golden(name, case):
    """Returns the inputs and outputs of a library's loss."""
    record = json.loads((GOLDENS / f"{name}.json").read_text())["cases"][case]
    parts = ("inputs", "outputs")
    return tuple({k: np.asarray(v) for k, v in record[part].items()} for part in parts)


def column(x):
    return jnp.asarray(x, jnp.float32)


def gradient_of(objective, log_probs, batch, hp, extra=None):
    extra = Frozen() if extra is None else extra
    state = train.TrainState(0, log_probs, (), extra, jax.random.key(0))
    grads, loss = gradient(objective, state, batch, hp)
    return grads, loss.mean


def grpo_loss(recipe, inputs, log_probs, old, ref=None, advantages=None):
    """The loss of a recipe, with its gradient in the log-probabilities."""
    config, hp = recipe
    policy, text = given_text(inputs["mask"])
    weights = aggregation.token_weights(text.mask, config.aggregation, config.max_new_tokens)
    batch = grpo.Batch(
        text,
        column(old),
        column(old if ref is None else ref),
        text.mask.astype(jnp.float32),
        column(inputs["advantages"] if advantages is None else advantages),
        weights,
    )
    return gradient_of(grpo.make_objective(policy, config), column(log_probs), batch, hp)


def close(found, outputs):
    grads, loss = found
    np.testing.assert_allclose(loss, outputs["loss"], rtol=1e-5)
    np.testing.assert_allclose(grads, outputs["grad"], rtol=1e-4, atol=1e-7)


def test_grpo_of_trl():
    inputs, outputs = golden("trl_tokens", "dapo")
    recipe = grpo.recipe("trl")
    close(grpo_loss(recipe, inputs, inputs["log_probs"], inputs["old_log_probs"]), outputs)


def test_grpo_of_trl_with_a_penalty():
    """Its k3 is multiplied by the ratio."""
    inputs, _ = golden("trl_tokens", "dapo")
    config, hp = grpo.recipe("trl")
    new, ref, mask = (jnp.asarray(inputs[x]) for x in ("log_probs", "ref_log_probs", "mask"))

    def theirs(x):
        gap = ref - x
        return 0.5 * jnp.sum(mask * jnp.exp(x - new) * (jnp.exp(gap) - gap - 1)) / jnp.sum(mask)

    recipe = (config, hp.replace(beta=0.5))
    found = grpo_loss(recipe, inputs, new, new, ref, advantages=np.zeros(len(mask)))
    close(found, {"loss": theirs(new), "grad": jax.grad(theirs)(new)})


def test_grpo_of_verl():
    inputs, outputs = golden("verl_tokens", "ppo")
    config, hp = grpo.recipe("verl")
    assert hp.dual_clip == inputs["dual_clip"] and hp.eps_low == inputs["eps_low"]
    recipe = (config, hp.replace(eps_high=0.28))
    close(grpo_loss(recipe, inputs, inputs["log_probs"], inputs["old_log_probs"]), outputs)


def test_ppo_of_verl():
    inputs, outputs = golden("verl_tokens", "ppo")
    config, hp = rlhf_ppo.recipe("verl")
    policy, text = given_text(inputs["mask"])
    zeros = jnp.zeros(text.mask.shape)
    batch = rlhf_ppo.Batch(
        text,
        column(inputs["old_log_probs"]),
        zeros,
        column(inputs["advantages"]),
        zeros,
        zeros[:, 0],
        jnp.ones(len(zeros), bool),
    )
    # The value model says 0 and has nothing to lose.
    frozen = {"value": {"score": {"kernel": jnp.zeros(1), "bias": jnp.float32(0)}}}
    objective = rlhf_ppo.make_objective(policy, rlhf_ppo.Config(shared_trunk=True))

    def of_policy(log_probs, extra, batch, key, hp):
        return objective({"policy": log_probs, **frozen}, extra, batch, key, hp)

    extra = rlhf_ppo.Extra(Frozen(), init_proportional_kl(hp.beta, hp.kl_target, hp.kl_horizon))
    hp = hp.replace(eps_high=0.28)
    close(gradient_of(of_policy, column(inputs["log_probs"]), batch, hp, extra), outputs)

    inputs, outputs = golden("verl_tokens", "gae_undiscounted")
    assert (hp.gamma, hp.gae_lambda) == (inputs["discount"], inputs["lambda"]) and config.whiten
    mask = jnp.asarray(inputs["mask"])
    advantages, returns = token_returns.generalized_token_advantages(
        column(inputs["rewards"]), column(inputs["values"]), mask, hp.gamma, hp.gae_lambda
    )
    white = tokens.masked_whiten(advantages, mask)
    np.testing.assert_allclose(white, outputs["white"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(returns, outputs["returns"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("like", ["trl", "tunix", "areal"])
def test_dpo(like):
    """All three have one loss; the numbers are TRL's."""
    inputs, outputs = golden("trl", "dpo_sigmoid")
    config, hp = dpo.recipe(like)
    assert hp.beta == inputs["beta"]
    # One token behind the first, so that a sum over tokens is that token's number.
    rows = [np.stack([np.zeros(6), x], axis=1) for x in inputs["log_probs"].T]
    refs = [column(np.stack([np.zeros(6), x], axis=1)) for x in inputs["ref_log_probs"].T]
    policy, text = given_text(np.tile([False, True], (6, 1)))
    log_probs, batch = column(np.concatenate(rows)), dpo.Batch(text, text, *refs)
    grads, loss = gradient_of(dpo.make_objective(policy, config), log_probs, batch, hp)
    close(
        (grads[:, 1] * 6, loss), {"loss": outputs["loss"].mean(), "grad": outputs["grad"].T.ravel()}
    )
    assert np.all(np.asarray(grads[:, 0]) == 0)


@pytest.mark.parametrize(("module", "like"), RECIPES)
def test_recipes_fit(module, like):
    config, hyper = module.recipe(like)
    config.validate()
    assert isinstance(hyper, module.Hyper)
    assert all(type(x) is float for x in jax.tree.leaves(hyper))


@pytest.mark.parametrize("module", [grpo, rlhf_ppo, dpo])
def test_other_names_are_refused_with_those_that_are_known(module):
    known = ", ".join(like for other, like in RECIPES if other is module)
    with pytest.raises(ValueError, match=f"like must be one of {known}, got"):
        module.recipe("openrlhf")


def test_verl_has_no_dpo():
    with pytest.raises(ValueError, match="like must be one of trl, tunix, areal, got 'verl'"):
        dpo.recipe("verl")
