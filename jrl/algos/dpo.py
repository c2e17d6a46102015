"""Direct preference optimisation and its relatives: learn from pairs without a reward model.

    L(theta) = E[l(log (pi_theta / pi_ref)(y_w|x), log (pi_theta / pi_ref)(y_l|x))]

Source: Rafailov et al. 2023, eq. 7, https://arxiv.org/abs/2305.18290; the losses, one for each name
of `Config.loss`, have theirs in `jrl.losses`.

Deviations: none; the reference's log-probabilities are columns, computed once for each batch.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import struct

from jrl import networks, train
from jrl.lm.optimizer import AdamW, adamw
from jrl.lm.policy import Policy, PreferenceBatch, TokenBatch, by_parts
from jrl.losses import direct_alignment, preference, tokens
from jrl.types import Leaf, Updater, check_sizes

__all__ = ["Batch", "Config", "Hyper", "make", "make_objective"]

LossName = Literal["sigmoid", "robust", "ipo", "hinge", "simpo", "orpo"]

REFERENCE_FREE = ("simpo", "orpo")


class Hyper(AdamW):
    """Numbers that may differ between runs of one program."""

    beta: Leaf = 0.1
    """How strongly the policy is held to the reference; the weight of the odds ratio in ORPO."""
    label_smoothing: Leaf = 0.0
    """Chance that a label is wrong: conservative DPO with `sigmoid`, unbiased with `robust`."""
    margin: Leaf = 0.5
    """SimPO's target margin gamma."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and choices, compiled in."""

    updates: int = 1000
    """Updates of the whole run: what warm-up and annealing refer to."""
    microbatches: int = 1
    """Parts that one update's gradient is accumulated over."""
    compute_dtype: str = "float32"
    """What the model computes in, float32 or bfloat16; parameters and sums stay as they are."""
    loss: LossName = "sigmoid"
    """Which member of the family."""
    length_normalized: bool = False
    """Divide log-probabilities by the length of the answer first (as TRL does for `ipo`)."""

    def validate(self) -> None:
        """Raises ValueError with the name of the field that does not fit."""
        check_sizes("config", self)
        networks.check_dtype(self.compute_dtype)
        if self.loss not in get_args(LossName):
            names = ", ".join(get_args(LossName))
            raise ValueError(f"config.loss must be one of {names}, got {self.loss!r}")


class Batch(struct.PyTreeNode):
    """Columns of one update."""

    chosen: TokenBatch
    rejected: TokenBatch
    ref_chosen: Leaf
    ref_rejected: Leaf


def make_objective(policy: Policy, config: Config) -> train.Objective:
    """Makes the objective of the equation above, summed over the pairs of a (micro)batch."""

    def objective(params, extra, batch: Batch, key, hp):
        # Both answers in one pass: the model runs once on twice the rows.
        both = jax.tree.map(lambda *x: jnp.concatenate(x), batch.chosen, batch.rejected)
        log_probs, _ = policy.log_probs(params, extra.base, both)
        chosen, rejected = jnp.split(_of_answers(config, log_probs, both.mask), 2)
        loss = _loss(config.loss, chosen, rejected, batch.ref_chosen, batch.ref_rejected, hp)
        gained = preference.implicit_reward(chosen, batch.ref_chosen, hp.beta)
        lost = preference.implicit_reward(rejected, batch.ref_rejected, hp.beta)
        columns = {
            "accuracy": (gained > lost).astype(jnp.float32),
            "margin": gained - lost,
            "chosen_reward": gained,
            "rejected_reward": lost,
        }
        return train.sum_columns(loss, columns)

    return objective


def make(policy: Policy, config: Config) -> Updater:
    """Makes the algorithm; `frozen.reference` of its `init` is the model before training.

    Raises ValueError if a field of `config` does not fit, or the reference's shape.
    """
    config.validate()
    objective, optimizer = make_objective(policy, config), adamw(config.updates)
    grad_fn = train.gradient(objective, config.microbatches, config.compute_dtype)
    train_step = train.make_train_step(grad_fn, optimizer)

    def init(key, params, frozen, hp):
        if config.loss not in REFERENCE_FREE:
            policy.reference(frozen)
        return train.init(key, params, optimizer, hp, frozen)

    def prepare(state, batch: PreferenceBatch, hp):
        if config.loss in REFERENCE_FREE:
            zeros = jnp.zeros(batch.chosen.mask.shape[0])
            return Batch(batch.chosen, batch.rejected, zeros, zeros), {}

        def answers(part: TokenBatch):
            return _of_answers(config, policy.reference_log_probs(state.extra, part), part.mask)

        chosen, rejected = (
            by_parts(answers, part, config.microbatches) for part in (batch.chosen, batch.rejected)
        )
        return Batch(batch.chosen, batch.rejected, chosen, rejected), {}

    def update(state, batch, hp):
        state, loss = train_step(state, batch, hp)
        return state, loss.metrics

    def evaluate(state, batch, hp):
        loss = objective(state.params, state.extra, prepare(state, batch, hp)[0], state.key, hp)
        return {"loss": (loss.total, loss.weight), **loss.metrics}

    def trained(state):
        return policy.merge(state.params, state.extra.base)

    return Updater(init, prepare, update, evaluate, trained)


def _of_answers(config: Config, log_probs, mask):
    if config.length_normalized or config.loss in REFERENCE_FREE:
        return tokens.masked_mean(log_probs, mask, axis=-1)
    return tokens.masked_sum(log_probs, mask, axis=-1)


def _loss(name: LossName, chosen, rejected, ref_chosen, ref_rejected, hp):
    pair = (chosen, rejected, ref_chosen, ref_rejected)
    if name == "sigmoid":
        return preference.dpo_loss(*pair, hp.beta, label_smoothing=hp.label_smoothing)
    if name == "robust":
        return direct_alignment.robust_dpo_loss(*pair, hp.beta, hp.label_smoothing)
    if name == "ipo":
        return preference.ipo_loss(*pair, hp.beta)
    if name == "hinge":
        return direct_alignment.hinge_dpo_loss(*pair, hp.beta)
    if name == "simpo":
        return direct_alignment.simpo_loss(chosen, rejected, hp.beta, hp.margin)
    return direct_alignment.orpo_loss(chosen, rejected, hp.beta)
