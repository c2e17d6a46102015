"""Reward model: a language model learns to score answers from pairs of which one was preferred.

    L(theta) = -E[log sigmoid(r(x, y_w) - r(x, y_l) - m)] + c E[(r(x, y_w) + r(x, y_l))^2]

where r is a linear head on the features of the last token. Source: Ouyang et al. 2022, eq. 1,
https://arxiv.org/abs/2203.02155; the others at `jrl.losses.bradley_terry_loss`.

Deviations: every pair is an example of its own (the paper batches all pairs of a prompt, of which
it has up to 36). The parameters are {"trunk", "score"}; adapters are on the trunk. A row is one
answer: of a packed row only the last answer would be scored.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jrl import networks, train, tree
from jrl.lm.optimizer import AdamW, adamw
from jrl.lm.policy import Policy, PreferenceBatch, filled, last_score
from jrl.losses import preference
from jrl.types import Leaf, Updater, check_sizes

__all__ = ["Config", "Hyper", "make", "make_objective"]


class Hyper(AdamW):
    """Numbers that may differ between runs of one program."""

    margin: Leaf = 0.0
    """By how much the preferred answer shall be better."""
    centering: Leaf = 0.0
    """Weight of the squared sum of both rewards, which pins their mean to zero."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, compiled in."""

    updates: int = 1000
    """Updates of the whole run: what warm-up and annealing refer to."""
    microbatches: int = 1
    """Parts that one update's gradient is accumulated over."""
    compute_dtype: str = "float32"
    """What the model computes in, float32 or bfloat16; parameters and sums stay as they are."""

    def validate(self) -> None:
        """Raises ValueError with the name of the field that does not fit."""
        check_sizes("config", self)
        networks.check_dtype(self.compute_dtype)


def make_objective(policy: Policy) -> train.Objective:
    """Makes the objective of the equation above, summed over the pairs of a (micro)batch."""

    def objective(params, extra, batch: PreferenceBatch, key, hp):
        # Both answers in one pass: the model runs once on twice the rows.
        both = jax.tree.map(lambda *x: jnp.concatenate(x), batch.chosen, batch.rejected)
        hidden = policy.hidden(params["trunk"], extra.base, both)
        chosen, rejected = jnp.split(last_score(params["score"], hidden, both.mask), 2)
        loss = preference.bradley_terry_loss(chosen, rejected, hp.margin, hp.centering)
        columns = {
            "accuracy": (chosen > rejected).astype(jnp.float32),
            "margin": chosen - rejected,
            "reward": (chosen + rejected) / 2,
        }
        return train.sum_columns(loss, columns, filled(batch))

    return objective


def make(policy: Policy, config: Config) -> Updater:
    """Makes the algorithm; its `init` takes {"trunk", "score"} (see `init_score_head`).

    Raises ValueError if a field of `config` does not fit.
    """
    config.validate()
    objective, optimizer = make_objective(policy), adamw(config.updates)
    grad_fn = train.gradient(objective, config.microbatches, config.compute_dtype)
    train_step = train.make_train_step(grad_fn, optimizer)

    def init(key, params, frozen, hp):
        return train.init(key, params, optimizer, hp, frozen)

    def prepare(state, batch, hp):
        return batch, {}

    def update(state, batch, hp):
        state, loss = train_step(state, batch, hp)
        return state, loss.metrics

    def evaluate(state, batch, hp):
        params = tree.cast(state.params, config.compute_dtype)
        loss = objective(params, state.extra, batch, state.key, hp)
        return {"loss": (loss.total, loss.weight), **loss.metrics}

    def trained(state):
        return {**state.params, "trunk": policy.merge(state.params["trunk"], state.extra.base)}

    return Updater(init, prepare, update, evaluate, trained)
