"""Direct preference optimisation and its relatives: learn from pairs without a reward model.

    L(theta) = E[l(log (pi_theta / pi_ref)(y_w|x), log (pi_theta / pi_ref)(y_l|x))]

Source: Rafailov et al. 2023, eq. 7, https://arxiv.org/abs/2305.18290; the losses, one for each name
of `Config.loss`, have theirs in `jrl.losses`.

Deviations: none; the reference's log-probabilities are columns, computed once for each batch. A row
is one answer: a packed row would be taken for one long answer.
"""

import dataclasses
import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import struct

from jrl import networks, train, tree
from jrl.lm.optimizer import AdamW, adamw
from jrl.lm.policy import Policy, PreferenceBatch, TokenBatch, by_parts, certainly, filled
from jrl.losses import direct_alignment, preference, tokens
from jrl.types import Leaf, Updater, check_sizes

__all__ = ["Batch", "Config", "Hyper", "make", "make_objective", "recipe"]

LossName = Literal["sigmoid", "robust", "ipo", "hinge", "simpo", "orpo"]

REFERENCE_FREE = ("simpo", "orpo")


class Hyper(AdamW):
    """Numbers that may differ between runs of one program."""

    beta: Leaf = 0.1
    """How strongly the policy is held to the reference; the weight of the odds ratio in ORPO.

    SimPO multiplies means by it, not sums: there it is from 2 to 10.
    """
    label_smoothing: Leaf = 0.0
    """Chance that a label is wrong: conservative DPO with `sigmoid`, unbiased with `robust`."""
    margin: Leaf = 1.0
    """SimPO's target margin gamma, about half of `beta`."""


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
    """The reference's log-probabilities of the tokens, [B, L]; zeros where there is none."""
    ref_rejected: Leaf
    """[B, L]"""


def make_objective(policy: Policy, config: Config) -> train.Objective:
    """Makes the objective of the equation above, summed over the pairs of a (micro)batch."""
    # Differences of tokens keep the sign that a difference of two long sums may lose.
    of_answers = tokens.masked_mean if _of_means(config) else tokens.masked_sum

    def objective(params, extra, batch: Batch, key, hp):
        # Both answers in one pass: the model runs once on twice the rows.
        both = jax.tree.map(lambda *x: jnp.concatenate(x), batch.chosen, batch.rejected)
        ref = jnp.concatenate([batch.ref_chosen, batch.ref_rejected])
        log_probs, _ = policy.log_probs(params, extra.base, both)
        gained = of_answers(log_probs - ref, both.mask, axis=-1)
        # A place without a pair has sums of nothing, at which some of the losses are infinite.
        there = filled(batch)
        chosen, rejected = jnp.split(jnp.where(jnp.tile(there, 2), gained, -1.0), 2)
        columns = {
            "accuracy": (chosen > rejected).astype(jnp.float32),
            "margin": hp.beta * (chosen - rejected),
            "chosen_reward": hp.beta * chosen,
            "rejected_reward": hp.beta * rejected,
        }
        return train.sum_columns(_loss(config.loss, chosen, rejected, hp), columns, there)

    return objective


def make(policy: Policy, config: Config) -> Updater:
    """Makes the algorithm; `frozen.reference` of its `init` is the model before training.

    Raises ValueError if a field of `config` does not fit; in `init` for the reference's shape, and
    for `hp.beta` below 1 with SimPO.
    """
    config.validate()
    objective, optimizer = make_objective(policy, config), adamw(config.updates)
    grad_fn = train.gradient(objective, config.microbatches, config.compute_dtype)
    train_step = train.make_train_step(grad_fn, optimizer)

    def init(key, params, frozen, hp):
        if config.loss not in REFERENCE_FREE:
            policy.reference(frozen)
        if config.loss == "simpo" and certainly(hp.beta < 1):
            raise ValueError(
                "hyper.beta must be at least 1 with loss='simpo', where it multiplies means "
                f"(2 to 10 in its paper), got {hp.beta}"
            )
        return train.init(key, params, optimizer, hp, frozen)

    def prepare(state, batch: PreferenceBatch, hp):
        if config.loss in REFERENCE_FREE:
            zeros = [jnp.zeros(part.mask.shape) for part in (batch.chosen, batch.rejected)]
            return Batch(batch.chosen, batch.rejected, *zeros), {}
        frozen = tree.cast(state.extra, config.compute_dtype)
        read = functools.partial(policy.reference_log_probs, frozen)
        ref = [by_parts(read, x, config.microbatches) for x in (batch.chosen, batch.rejected)]
        return Batch(batch.chosen, batch.rejected, *ref), {}

    def update(state, batch, hp):
        state, loss = train_step(state, batch, hp)
        return state, loss.metrics

    def evaluate(state, batch, hp):
        params = tree.cast(state.params, config.compute_dtype)
        loss = objective(params, state.extra, prepare(state, batch, hp)[0], state.key, hp)
        return {"loss": (loss.total, loss.weight), **loss.metrics}

    def trained(state):
        return policy.merge(state.params, state.extra.base)

    return Updater(init, prepare, update, evaluate, trained)


def recipe(like: str) -> tuple[Config, Hyper]:
    """Returns the settings of another library's DPO, so that its recipes carry over.

    Defaults of TRL 1.16, Tunix 0.1.7 and AReaL 2.0, which all have the loss of the equation above
    with `beta=0.1`. Step sizes of Tunix and AReaL are not carried over, nor are batches and dtypes.
    Other losses have other settings: `ipo` of TRL and AReaL wants `length_normalized=True`, and
    TRL's `beta` and margin of `simpo`, 0.1 and 0.5, are refused here.

    Raises ValueError for another name; verl has no DPO.

    >>> config, hyper = recipe("trl")
    >>> config.loss, hyper.beta, hyper.learning_rate
    ('sigmoid', 0.1, 1e-06)
    """
    if like == "trl":
        return Config(), Hyper(learning_rate=1e-6, anneal=1.0)
    if like in ("tunix", "areal"):
        return Config(), Hyper()
    raise ValueError(f"like must be one of trl, tunix, areal, got {like!r}")


def _of_means(config: Config) -> bool:
    return config.length_normalized or config.loss in REFERENCE_FREE


def _loss(name: LossName, chosen, rejected, hp):
    zeros = jnp.zeros_like(chosen)
    # The reference is taken off already.
    pair = (chosen, rejected, zeros, zeros)
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
