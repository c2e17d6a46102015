"""Supervised fine-tuning: a language model learns the completions of a data set.

    L(theta) = -(1 / sum m) sum_i sum_t m_it log pi_theta(y_it | y_i,<t)

Source: Ouyang et al. 2022, section 3.5 (SFT), https://arxiv.org/abs/2203.02155; the maximum
likelihood of Bengio et al. 2003, section 2, https://www.jmlr.org/papers/v3/bengio03a.html.

Deviations: every token of the mask counts the same, whatever the length of its row and however a
batch is cut into microbatches (the paper does not say).
"""

import dataclasses

from jrl import networks, train, tree
from jrl.lm.optimizer import AdamW, adamw
from jrl.lm.policy import Policy, TokenBatch
from jrl.types import Updater, check_sizes

__all__ = ["Config", "Hyper", "make", "make_objective"]


class Hyper(AdamW):
    """Numbers that may differ between runs of one program."""


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
    """Makes the objective of the equation above, summed over a (micro)batch."""

    def objective(params, extra, batch: TokenBatch, key, hp):
        log_probs, entropies = policy.log_probs(params, extra.base, batch)
        return train.sum_columns(-log_probs, {"entropy": entropies}, batch.mask)

    return objective


def make(policy: Policy, config: Config) -> Updater:
    """Makes the algorithm; its `init` takes no frozen parameters but the base of adapters.

    Raises ValueError if a field of `config` does not fit.

    >>> import jax
    >>> from jrl.lm import transformer
    >>> from jrl.lm.config import Config as Sizes
    >>> from jrl.lm.policy import Frozen
    >>> model = transformer.make(Sizes(vocab_size=3, num_layers=1))
    >>> updater, hp = make(Policy(model), Config(updates=1)), Hyper()
    >>> state = updater.init(jax.random.key(0), model.init(jax.random.key(1)), Frozen(), hp)
    >>> ones = jax.numpy.ones((1, 2), int)
    >>> batch = TokenBatch(tokens=ones, mask=ones > 0, segment_ids=ones, positions=0 * ones)
    >>> state, metrics = updater.update(state, updater.prepare(state, batch, hp)[0], hp)
    >>> int(state.step)
    1
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
        return policy.merge(state.params, state.extra.base)

    return Updater(init, prepare, update, evaluate, trained)
