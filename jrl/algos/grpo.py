"""Group-relative policy optimisation: sampled answers are compared with others to their prompt.

    L(theta) = E_it[-min(r_it A_i, clip(r_it, 1 - eps_low, 1 + eps_high) A_i) + beta KL_it]
    r_it = pi_theta(y_it) / pi_old(y_it),    A_i = (R_i - mean R) / std R  over the answers' group

Source: Shao et al. 2024, eq. 3 and 4, https://arxiv.org/abs/2402.03300. Settings of `Config` and
`Hyper` make it RLOO (Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740), Dr. GRPO (Liu et al.
2025, https://arxiv.org/abs/2503.20783), DAPO (Yu et al. 2025, https://arxiv.org/abs/2503.14476),
GSPO (Zheng et al. 2025, https://arxiv.org/abs/2507.18071) and CISPO (MiniMax 2025,
https://arxiv.org/abs/2506.13585); `recipe` those of other libraries.

Deviations: old log-probabilities are the trainer's (or the sampler's with `recompute` off), and the
ratio of both is a weight on every token; the mean over tokens is DAPO's unless asked otherwise;
there is no KL penalty unless `beta` is positive, and then its gradient is that of KL(pi || pi_ref)
(k3 with the gradient of k2), not GRPO's, which is of the other divergence.
"""

import dataclasses
import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import struct

from jrl import metrics, networks, train, tree
from jrl.lm import generation
from jrl.lm.optimizer import AdamW, adamw
from jrl.lm.policy import Policy, RolloutBatch, TokenBatch, by_parts, certainly
from jrl.losses import aggregation, importance, kl, token_policy, token_returns, tokens
from jrl.types import Leaf, Updater, check_sizes

__all__ = ["Batch", "Config", "Hyper", "make", "make_objective", "recipe"]

ESTIMATORS = {"k1": kl.kl_k1, "k2": kl.kl_k2, "k3": kl.kl_k3, "k3+": kl.kl_k3_plus}


class Hyper(AdamW):
    """Numbers that may differ between runs of one program."""

    learning_rate: Leaf = 1e-6
    """Largest step size."""
    eps_low: Leaf = 0.2
    """How far below 1 a ratio is followed. CISPO has no such bound: give it 1."""
    eps_high: Leaf = 0.2
    """How far above 1: more than `eps_low` is DAPO's clip-higher; in CISPO 4 is usual."""
    dual_clip: Leaf = jnp.inf
    """Bound of the ratio where the advantage is negative (3 in verl); inf for none."""
    beta: Leaf = 0.0
    """Weight of the divergence from the reference, which must be given if it is positive."""
    entropy_coef: Leaf = 0.0
    """Weight of the entropy bonus."""
    temperature: Leaf = 1.0
    """Of sampling, and so of the policy that is trained."""
    correction_low: Leaf = 0.0
    """Least weight for the difference between sampler and trainer."""
    correction_high: Leaf = 2.0
    """Greatest weight for it."""
    advantage_eps: Leaf = 1e-6
    """Added to the standard deviation of a group; `whiten` has 1e-8 below a root in its place."""
    overlong_penalty: Leaf = 0.0
    """What an answer of the full length loses; see `Config.overlong_buffer`."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and choices, compiled in."""

    updates: int = 1000
    """Updates of the whole run: what warm-up and annealing refer to."""
    group_size: int = 8
    """Answers to each prompt."""
    max_new_tokens: int = 256
    """Longest answer: what `constant` divides by, and what overlong answers are measured by."""
    epochs: int = 1
    """Passes over each batch of answers."""
    minibatches: int = 1
    """Updates of each pass."""
    microbatches: int = 1
    """Parts that one update's gradient, and what is computed before it, is accumulated over."""
    compute_dtype: str = "float32"
    """What the model computes in, float32 or bfloat16; parameters and sums stay as they are."""
    loss: Literal["clip", "cispo"] = "clip"
    """PPO's clipped surrogate, or REINFORCE with clipped weights, which wants `eps_low=1`."""
    level: Literal["token", "sequence"] = "token"
    """Ratios of tokens, or of whole answers (GSPO)."""
    advantage: Literal["grpo", "dr_grpo", "rloo", "batch_std", "whiten"] = "grpo"
    """What an answer's reward is compared with: its group, or all tokens of the batch (whiten)."""
    aggregation: Literal["token-mean", "sequence-mean", "constant"] = "token-mean"
    """What the loss is a mean of: DAPO's, GRPO's and Dr. GRPO's."""
    kl: Literal["k1", "k2", "k3", "k3+"] = "k3+"
    """Estimator of the divergence in the loss."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where `beta` charges it. In the loss a token pays for its own divergence, in the reward
    (k1, of the whole answer, as in RLOO) also for what it makes later tokens cost."""
    recompute: bool = True
    """Whether the trainer computes the old log-probabilities, which are then compared with the
    sampler's (`sampler_gap`); False takes the sampler's, which saves a forward pass."""
    correction: Literal["none", "truncate", "mask"] = "truncate"
    """What happens to a weight between sampler and trainer that is out of bounds."""
    correction_level: Literal["token", "sequence", "sequence-mean"] = "token"
    """What that weight is of."""
    mask_truncated: bool = False
    """Learn nothing from answers that were cut off."""
    overlong_buffer: int = dataclasses.field(default=0, metadata={"may_be_zero": True})
    """Last tokens of the length over which `overlong_penalty` grows (DAPO); 0 for none."""

    def validate(self) -> None:
        """Raises ValueError with the name of the field that does not fit."""
        check_sizes("config", self)
        networks.check_dtype(self.compute_dtype)
        for field in dataclasses.fields(self):
            choices, value = get_args(field.type), getattr(self, field.name)
            if choices and value not in choices:
                names = ", ".join(choices)
                raise ValueError(f"config.{field.name} must be one of {names}, got {value!r}")
        if self.loss == "cispo" and self.level != "token":
            raise ValueError("config.level must be 'token' with loss='cispo', got 'sequence'")
        if self.group_size < 2 and self.advantage != "whiten":
            raise ValueError(
                f"config.group_size must be at least 2 with advantage={self.advantage!r}, which "
                f"compares the answers to a prompt, got {self.group_size}; "
                "'whiten' compares those of a batch"
            )
        if self.overlong_buffer > self.max_new_tokens:
            raise ValueError(
                f"config.overlong_buffer={self.overlong_buffer} must be at most "
                f"max_new_tokens={self.max_new_tokens}"
            )


class Batch(struct.PyTreeNode):
    """Columns of one batch of answers."""

    text: TokenBatch
    old_log_probs: Leaf
    ref_log_probs: Leaf
    correction: Leaf
    """What a token's surrogate weighs for having been drawn by the sampler's numbers."""
    advantage: Leaf
    weights: aggregation.TokenWeights


def make_objective(policy: Policy, config: Config) -> train.Objective:
    """Makes the objective of the equation above, summed over a (micro)batch."""

    def objective(params, extra, batch: Batch, key, hp):
        log_probs, entropy = policy.log_probs(params, extra.base, batch.text, hp.temperature)
        mask = batch.text.mask
        # On prompts and padding a ratio may overflow, whose gradient 0 times inf would be NaN.
        log_probs, old, ref = (
            jnp.where(mask, x, 0.0) for x in (log_probs, batch.old_log_probs, batch.ref_log_probs)
        )
        bounds = (batch.advantage, mask, hp.eps_low, hp.eps_high)
        if config.loss == "cispo":
            loss = token_policy.cispo_loss(log_probs, old, *bounds)
        else:
            loss = token_policy.clipped_token_surrogate(
                log_probs, old, *bounds, hp.dual_clip, config.level
            )
        divergence = ESTIMATORS[config.kl](log_probs, ref)
        beta = hp.beta if config.kl_in == "loss" else 0.0
        loss = batch.correction * loss + beta * divergence - hp.entropy_coef * entropy
        log_ratio = log_probs - old
        if config.level == "sequence":
            log_ratio = token_policy.sequence_log_ratio(log_ratio, mask)
        ratio = jnp.exp(log_ratio)
        clipped = (ratio < 1 - hp.eps_low) | (ratio > 1 + hp.eps_high)
        columns = {
            "kl": kl.kl_k3(log_probs, ref),
            "entropy": entropy,
            "ratio": ratio,
            "clipped": clipped.astype(jnp.float32),
            "approx_kl": kl.kl_k3(old, log_probs),
        }
        token, row = batch.weights
        total = jnp.sum(token * jnp.where(token > 0, loss, 0.0))
        return train.sum_columns(loss, columns, mask)._replace(total=total, weight=jnp.sum(row))

    return objective


def prepare(policy: Policy, config: Config, state: train.TrainState, batch: RolloutBatch, hp):
    """Computes the columns; returns (`Batch`, metrics)."""
    text, mask = batch.text, batch.text.mask
    parts = config.microbatches * config.minibatches
    current = tree.cast(state.params, config.compute_dtype)

    def ours(part: TokenBatch):
        return policy.log_probs(current, state.extra.base, part, hp.temperature).log_probs_BxL

    def reference():
        frozen = tree.cast(state.extra, config.compute_dtype)
        read = functools.partial(policy.reference_log_probs, frozen, temperature=hp.temperature)
        return by_parts(read, text, parts)

    sampled = jnp.where(mask, batch.sampler_log_probs, 0.0)
    old = by_parts(ours, text, parts) if config.recompute else sampled
    ref = old
    if _has_reference(state.extra):
        # A base is there for its adapters: it is read where `beta` or a reference asks for it.
        given = bool(jax.tree.leaves(state.extra.reference))
        ref = jax.lax.cond((hp.beta > 0) | given, reference, lambda: old)
    correction = mask.astype(jnp.float32)
    if config.recompute and config.correction != "none":
        correction = importance.importance_weights(
            old,
            sampled,
            mask,
            config.correction_level,
            config.correction,
            hp.correction_high,
            hp.correction_low,
        )
    rewards = jnp.where(batch.known, batch.rewards, 0.0)
    if config.overlong_buffer:
        rewards = rewards + token_returns.overlong_penalty(
            mask, config.max_new_tokens, config.overlong_buffer, hp.overlong_penalty
        )
    if config.kl_in == "reward":
        rewards = rewards - hp.beta * tokens.masked_sum(kl.kl_k1(old, ref), mask, axis=-1)
    groups = len(rewards) // config.group_size
    advantage = _advantages(config, batch, rewards, groups, hp)
    kept = mask & batch.known[:, None]
    if config.mask_truncated:
        kept = token_returns.mask_truncated(kept, batch.truncated)
    weights = aggregation.token_weights(kept, config.aggregation, config.max_new_tokens)
    columns = Batch(text.replace(mask=kept), old, ref, correction, advantage, weights)
    measured = _measures(batch, rewards, groups)
    if config.recompute:
        measured |= generation.mismatch(sampled, old, mask)
    return columns, measured


def make(policy: Policy, config: Config) -> Updater:
    """Makes the algorithm; `frozen.reference` of its `init` is what `beta` holds it close to.

    Raises ValueError if a field of `config` does not fit; in `init` for the reference's shape, a
    positive `hp.beta` without a reference, and `hp.eps_low` below 1 with CISPO.
    """
    config.validate()
    per_batch = config.epochs * config.minibatches
    objective, optimizer = make_objective(policy, config), adamw(config.updates * per_batch)
    grad_fn = train.gradient(objective, config.microbatches, config.compute_dtype)
    train_step = train.make_train_step(grad_fn, optimizer)

    def init(key, params, frozen, hp):
        if _has_reference(frozen):
            policy.reference(frozen)
        elif certainly(hp.beta > 0):
            raise ValueError("frozen.reference: missing, hyper.beta must be 0 without one")
        if config.loss == "cispo" and certainly(hp.eps_low < 1):
            raise ValueError(
                "hyper.eps_low must be at least 1 with loss='cispo', which has no lower bound, "
                f"got {hp.eps_low} (and eps_high={hp.eps_high}, for which 4 is usual)"
            )
        return train.init(key, params, optimizer, hp, frozen)

    def update(state, batch, hp):
        key = jax.random.fold_in(state.key, state.step)
        sizes = (config.epochs, config.minibatches)
        state, sums = train.train_epochs(train_step, state, batch, key, hp, *sizes)
        return state, metrics.total(sums, axis=(0, 1))

    def evaluate(state, batch: RolloutBatch, hp):
        return prepare(policy, config, state, batch, hp)[1]

    def trained(state):
        return policy.merge(state.params, state.extra.base)

    return Updater(init, functools.partial(prepare, policy, config), update, evaluate, trained)


def recipe(like: str) -> tuple[Config, Hyper]:
    """Returns the settings of another library's GRPO, so that its recipes carry over.

    Defaults of TRL 1.16 (with vLLM), verl 0.9.1, Tunix 0.1.7 and AReaL 2.0, which disagree about
    what the loss is a mean of, the divergence, the dual clip, advantages, and what is done about
    the sampler's numbers. Of AReaL, the number of minibatches and the step size are its paper's
    (Fu et al. 2025, https://arxiv.org/abs/2505.24298), and its price of k1 in the reward, 0.1, is
    left out: that is without a reference, which it does not have by default either. Tunix has no
    step size. Sizes of groups, batches and answers are not carried over, nor dtypes.

    Raises ValueError for another name.

    >>> config, hyper = recipe("verl")
    >>> config.aggregation, hyper.dual_clip
    ('token-mean', 3.0)
    """
    if like == "trl":
        # k3 times the ratio has the value and gradient of k3+ where the ratio is 1.
        config = Config(correction="mask", correction_level="sequence", kl="k3+")
        return config, Hyper(anneal=1.0, correction_high=3.0, advantage_eps=1e-4)
    if like == "verl":
        config = Config(correction="none", kl="k3", minibatches=4)
        return config, Hyper(dual_clip=3.0, weight_decay=0.01)
    if like == "tunix":
        # k1 as a loss has no expected gradient: this is what Tunix does, not what one should.
        config = Config(recompute=False, correction="none", aggregation="sequence-mean", kl="k1")
        return config, Hyper(beta=0.04)
    if like == "areal":
        config = Config(advantage="whiten", recompute=False, correction="none", minibatches=4)
        return config, Hyper(learning_rate=2e-5)
    raise ValueError(f"like must be one of trl, verl, tunix, areal, got {like!r}")


def _has_reference(frozen) -> bool:
    return bool(jax.tree.leaves((frozen.reference, frozen.base)))


def _advantages(config: Config, batch: RolloutBatch, rewards, groups: int, hp):
    if config.advantage != "whiten":
        kind, eps = config.advantage, hp.advantage_eps
        ids = batch.group_ids
        return tokens.group_advantages_by_id(rewards, ids, groups, batch.known, kind, eps)
    kept = batch.text.mask & batch.known[:, None]
    return tokens.masked_whiten(jnp.broadcast_to(rewards[:, None], kept.shape), kept)


def _measures(batch: RolloutBatch, rewards, groups: int):
    """What is known before the update: rewards and lengths."""
    known, answers = batch.known, jnp.float32(len(batch.known))

    def count(x):
        return jnp.sum(x, dtype=jnp.float32)

    highest = jax.ops.segment_max(jnp.where(known, rewards, -jnp.inf), batch.group_ids, groups)
    lowest = jax.ops.segment_min(jnp.where(known, rewards, jnp.inf), batch.group_ids, groups)
    return {
        "reward": (jnp.sum(jnp.where(known, batch.rewards, 0.0)), count(known)),
        "unknown_rewards": (count(~known), answers),
        "equal_groups": (count(highest <= lowest), jnp.float32(groups)),
        "length": (count(batch.text.mask), answers),
        "truncated": (count(batch.truncated), answers),
    }
