"""PPO from human feedback: policy, frozen base, reward model and value model.

    maximise E[r(x, y)] - beta KL(pi_theta || pi_base), as rewards of single tokens

    r_t = r(x, y) 1{t = last} - beta log(pi_old(y_t) / pi_base(y_t)),  A_t by GAE from V
    L = E_t[-min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t) + c_v (V_t - G_t)^2 / 2 - c_e H_t]

Source: Ouyang et al. 2022, section 3.5, https://arxiv.org/abs/2203.02155; Ziegler et al. 2019,
section 2, https://arxiv.org/abs/1909.08593, whose adaptive beta it is too; details, Huang et al.
2024, https://arxiv.org/abs/2403.17031.

Deviations: no pretraining gradients are mixed in (PPO-ptx); the value of a token is read from the
features of the tokens before it, and from a trunk of its own unless `shared_trunk`; the answer is
worth what the reward model says, what reward functions said, or the sum of both.
"""

import dataclasses
import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import struct

from jrl import metrics, networks, train, tree
from jrl.lm import generation, transformer
from jrl.lm.optimizer import AdamW, adamw
from jrl.lm.policy import Frozen, Policy, RolloutBatch, TokenBatch, by_parts, judged
from jrl.losses import kl, token_policy, token_returns, tokens, trust_region, value
from jrl.types import Key, Leaf, Params, Updater, check_sizes

__all__ = ["Batch", "Config", "Extra", "Hyper", "init_value", "make", "make_objective", "recipe"]


class Hyper(AdamW):
    """Numbers that may differ between runs of one program."""

    learning_rate: Leaf = 1e-6
    """Largest step size."""
    gamma: Leaf = 1.0
    """Discount per token."""
    gae_lambda: Leaf = 0.95
    """Decay of the advantage estimator."""
    eps_low: Leaf = 0.2
    """How far below 1 a ratio is followed."""
    eps_high: Leaf = 0.2
    """How far above 1."""
    dual_clip: Leaf = jnp.inf
    """Bound of the ratio where the advantage is negative (3 in verl); inf for none."""
    value_clip: Leaf = 0.2
    """Furthest that a value may move in one batch; inf for any."""
    value_coef: Leaf = 0.1
    """Weight of the value loss."""
    entropy_coef: Leaf = 0.0
    """Weight of the entropy bonus."""
    beta: Leaf = 0.05
    """Price of divergence from the base, to begin with."""
    kl_target: Leaf = 6.0
    """Divergence of an answer, in nats, that an adaptive beta steers to."""
    kl_horizon: Leaf = 10_000.0
    """Answers in which an adaptive beta changes by about the factor e^0.2."""
    temperature: Leaf = 1.0
    """Of sampling, and so of the policy that is trained."""
    truncated_reward: Leaf = 0.0
    """Added to the reward of answers that were cut off."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and choices, compiled in."""

    updates: int = 1000
    """Batches of the whole run: what warm-up and annealing refer to."""
    epochs: int = 4
    """Passes over each batch of answers."""
    minibatches: int = 1
    """Updates of each pass."""
    microbatches: int = 1
    """Parts that one update's gradient, and what is computed before it, is accumulated over."""
    compute_dtype: str = "float32"
    """What the models compute in, float32 or bfloat16; parameters and sums stay as they are."""
    kl_control: Literal["fixed", "adaptive"] = "fixed"
    """Whether beta stays, or follows `kl_target`."""
    shared_trunk: bool = False
    """Read values from the policy's features instead of a trunk of their own."""
    whiten: bool = True
    """Shift and scale the advantages of a batch to mean 0 and variance 1."""

    def validate(self) -> None:
        """Raises ValueError with the name of the field that does not fit."""
        check_sizes("config", self)
        networks.check_dtype(self.compute_dtype)
        choices = get_args(Config.__annotations__["kl_control"])
        if self.kl_control not in choices:
            names = ", ".join(choices)
            raise ValueError(f"config.kl_control must be one of {names}, got {self.kl_control!r}")


class Extra(struct.PyTreeNode):
    """What is not differentiated: the frozen models, and the price of divergence."""

    frozen: Frozen
    penalty: trust_region.ProportionalKL


class Batch(struct.PyTreeNode):
    """Columns of one batch of answers, [B, L]."""

    text: TokenBatch
    old_log_probs: Leaf
    old_values: Leaf
    advantages: Leaf
    returns: Leaf
    divergence: Leaf
    """Of each answer from the base, [B], in nats: the sum of k1 over its tokens."""
    known: Leaf
    """[B] bool"""


def init_value(policy: Policy, config: Config, key: Key, trunk: Params) -> Params:
    """Starts the value model: a head, and a copy of `trunk` (a reward model's, or the policy's).

    Parameters of the algorithm are {"policy": ..., "value": this}.
    """
    head = transformer.init_score_head(key, policy.model.config)
    if config.shared_trunk:
        return {"score": head}
    # Values need no logits, and a reward model's trunk has no head for them.
    return {"score": head, "trunk": {name: x for name, x in trunk.items() if name != "head"}}


def make_objective(policy: Policy, config: Config) -> train.Objective:
    """Makes the objective of the equation above, summed over the tokens of a (micro)batch."""

    def objective(params, extra: Extra, batch: Batch, key, hp):
        (log_probs, entropy), values = _read(
            policy, config, params, extra, batch.text, hp.temperature
        )
        mask = batch.text.mask
        bounds = (hp.eps_low, hp.eps_high, hp.dual_clip)
        policy_loss = token_policy.clipped_token_surrogate(
            log_probs, batch.old_log_probs, batch.advantages, mask, *bounds
        )
        value_loss = value.clipped_value_loss(
            values, batch.old_values, batch.returns, hp.value_clip
        )
        loss = policy_loss + hp.value_coef * value_loss - hp.entropy_coef * entropy
        ratio = jnp.exp(log_probs - batch.old_log_probs)
        clipped = (ratio < 1 - hp.eps_low) | (ratio > 1 + hp.eps_high)
        columns = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "clipped": clipped.astype(jnp.float32),
            "approx_kl": kl.kl_k3(batch.old_log_probs, log_probs),
        }
        return train.sum_columns(loss, columns, mask)

    return objective


def prepare(
    policy: Policy,
    config: Config,
    reward_model: transformer.Transformer,
    state: train.TrainState,
    batch: RolloutBatch,
    hp,
):
    """Computes the columns; returns (`Batch`, metrics)."""
    text, beta = batch.text, state.extra.penalty.beta
    mask = text.mask & batch.known[:, None]
    current, frozen = tree.cast((state.params, state.extra.frozen), config.compute_dtype)

    def judge(part: TokenBatch):
        (old, _), values = _read(policy, config, current, state.extra, part, hp.temperature)
        ref = policy.reference_log_probs(frozen, part, hp.temperature)
        return old, ref, values, _reward(reward_model, frozen, part)

    parts = config.microbatches * config.minibatches
    old, ref, values, scores = by_parts(judge, text, parts)
    rewards = scores + jnp.where(batch.known, batch.rewards, 0.0)
    rewards = rewards + hp.truncated_reward * batch.truncated
    rewards_BxL = token_returns.token_rewards(rewards, old, ref, mask, beta)
    advantages, returns = token_returns.generalized_token_advantages(
        rewards_BxL, values, mask, hp.gamma, hp.gae_lambda
    )
    if config.whiten:
        advantages = tokens.masked_whiten(advantages, mask)
    divergence = tokens.masked_sum(old - ref, mask, axis=-1)
    columns = Batch(
        text.replace(mask=mask), old, values, advantages, returns, divergence, batch.known
    )
    return columns, _measures(batch, columns, rewards, beta)


def make(
    policy: Policy, config: Config, reward_model: transformer.Transformer | None = None
) -> Updater:
    """Makes the algorithm; its `init` takes {"policy", "value"} and the frozen models.

    `reward_model` is what runs `frozen.reward`, by default a model like the policy.

    Raises ValueError if a field of `config` does not fit, or the reference's shape.
    """
    config.validate()
    per_batch = config.epochs * config.minibatches
    objective, optimizer = make_objective(policy, config), adamw(config.updates * per_batch)
    grad_fn = train.gradient(objective, config.microbatches, config.compute_dtype)
    train_step = train.make_train_step(grad_fn, optimizer)

    def init(key, params, frozen, hp):
        policy.reference(frozen)
        penalty = trust_region.init_proportional_kl(hp.beta, hp.kl_target, hp.kl_horizon)
        return train.init(key, params, optimizer, hp, Extra(frozen, penalty))

    columns = functools.partial(prepare, policy, config, reward_model or policy.model)

    def update(state, batch: Batch, hp):
        key = jax.random.fold_in(state.key, state.step)
        state, sums = train.train_epochs(
            train_step, state, batch, key, hp, config.epochs, config.minibatches
        )
        extra = state.extra
        if config.kl_control == "adaptive":
            penalty = trust_region.proportional_kl(
                extra.penalty,
                tokens.masked_mean(batch.divergence, batch.known),
                jnp.sum(batch.known, dtype=jnp.float32),
            )
            extra = extra.replace(penalty=penalty)
        return state.replace(extra=extra), metrics.total(sums, axis=(0, 1))

    def evaluate(state, batch: RolloutBatch, hp):
        return columns(state, batch, hp)[1]

    def trained(state):
        return policy.merge(state.params["policy"], state.extra.frozen.base)

    return Updater(init, columns, update, evaluate, trained)


def recipe(like: str) -> tuple[Config, Hyper]:
    """Returns the settings of another library's PPO, so that its recipes carry over.

    Defaults of TRL 1.10 (1.16 has no PPO), verl 0.9.1, Tunix 0.1.7 and AReaL 2.0, whose number of
    minibatches and step size are its paper's (Fu et al. 2025, https://arxiv.org/abs/2505.24298).
    All but TRL step the critic with an optimizer of its own, verl's at 1e-5: here one steps both,
    and `value_coef=1` adds the losses as they are. Tunix charges k3 where this charges k1. AReaL
    takes the sampler's log-probabilities as the old ones, and clips rewards at 20. Not carried
    over are step sizes of TRL and Tunix, sizes of batches and answers, and dtypes.

    Raises ValueError for another name.

    >>> config, hyper = recipe("verl")
    >>> config.epochs, hyper.gae_lambda, hyper.value_clip
    (1, 1.0, 0.5)
    """
    if like == "trl":
        return Config(), Hyper()
    if like == "verl":
        hyper = Hyper(weight_decay=0.01, gae_lambda=1.0, dual_clip=3.0, value_clip=0.5)
        # The divergence is not charged unless one asks, and then at 0.001.
        return Config(epochs=1, minibatches=4), hyper.replace(value_coef=1.0, beta=0.0)
    if like == "tunix":
        return Config(epochs=1), Hyper(value_coef=1.0, beta=0.04)
    if like == "areal":
        hyper = Hyper(learning_rate=2e-5, gae_lambda=1.0, value_clip=0.5)
        config = Config(epochs=1, minibatches=4, whiten=False)
        return config, hyper.replace(value_coef=1.0, beta=0.1)
    raise ValueError(f"like must be one of trl, verl, tunix, areal, got {like!r}")


def _read(policy: Policy, config: Config, params, extra: Extra, text: TokenBatch, temperature):
    """Runs policy and value model; the value of a token is that of the tokens before it."""
    base = extra.frozen.base
    hidden = policy.hidden(params["policy"], base, text)
    log_probs = policy.read(params["policy"], base, text.tokens, hidden, temperature)
    if not config.shared_trunk:
        trunk = params["value"]["trunk"]
        model = transformer.make(dataclasses.replace(policy.model.config, tied=True))
        hidden, _ = model.hidden(trunk, text.tokens, text.positions, text.segment_ids)
    values = transformer.scores(params["value"]["score"], hidden)
    return log_probs, jnp.pad(values[:, :-1], ((0, 0), (1, 0)))


def _reward(model: transformer.Transformer, frozen: Frozen, text: TokenBatch):
    if not jax.tree.leaves(frozen.reward):
        return jnp.zeros(text.tokens.shape[0])
    return judged(model, frozen.reward, text)


def _measures(batch: RolloutBatch, columns: Batch, rewards, beta):
    """What is known before the update: rewards, divergence, and how far sampler and trainer are."""
    mask, known = columns.text.mask, batch.known
    answers, count = jnp.float32(len(known)), jnp.sum(mask, dtype=jnp.float32)
    scored = jnp.sum(known, dtype=jnp.float32)
    return {
        "reward": (jnp.sum(jnp.where(known, rewards, 0.0)), scored),
        "unknown_rewards": (answers - scored, answers),
        "divergence": (jnp.sum(columns.divergence), scored),
        "beta": (beta, jnp.float32(1)),
        "length": (count, answers),
        "truncated": (jnp.sum(batch.truncated, dtype=jnp.float32), answers),
        **generation.mismatch(batch.sampler_log_probs, columns.old_log_probs, mask),
    }
