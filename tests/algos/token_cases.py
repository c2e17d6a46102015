"""Language-model algorithms at a size for tests: settings that change the maths, ragged batches."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from invariance import jit

from jrl.algos import dpo, grpo, reward_model, rlhf_ppo, sft
from jrl.lm import lora, transformer
from jrl.lm.config import Config
from jrl.lm.policy import Frozen, Policy, PreferenceBatch, RolloutBatch, TokenBatch

ROWS, LENGTH, VOCAB, GROUP = 8, 8, 11, 4
MODEL = transformer.make(
    Config(VOCAB, num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=24)
)
PLAIN = Policy(MODEL)
ADAPTED = Policy(MODEL, lambda params, base: lora.merge(base, params, 0.5))


class Case(NamedTuple):
    """An algorithm with settings; `adapters` are trained in place of the whole model."""

    module: Any
    config: Any
    hyper: Any
    adapters: bool = False

    @property
    def policy(self):
        return ADAPTED if self.adapters else PLAIN

    def objective(self):
        if self.module in (sft, reward_model):
            return self.module.make_objective(self.policy)
        return self.module.make_objective(self.policy, self.config)

    def updater(self, **config):
        return self.module.make(self.policy, dataclasses.replace(self.config, **config))


def _grpo(hyper=None, **config):
    hyper = {"beta": 0.1, "temperature": 0.7, "entropy_coef": 0.01, **(hyper or {})}
    return Case(
        grpo, grpo.Config(group_size=GROUP, max_new_tokens=6, **config), grpo.Hyper(**hyper)
    )


def _dpo(loss, beta=0.5, **config):
    hyper = dpo.Hyper(beta=beta, label_smoothing=0.1)
    return Case(dpo, dpo.Config(loss=loss, **config), hyper)


def _ppo(adapters=False, **config):
    hyper = rlhf_ppo.Hyper(value_coef=0.5, entropy_coef=0.01, truncated_reward=-0.5)
    return Case(rlhf_ppo, rlhf_ppo.Config(**config), hyper, adapters)


CASES = {
    "sft": Case(sft, sft.Config(), sft.Hyper()),
    "sft of adapters": Case(sft, sft.Config(), sft.Hyper(), True),
    "reward model": Case(
        reward_model, reward_model.Config(), reward_model.Hyper(margin=0.2, centering=0.1)
    ),
    "reward model of adapters": Case(
        reward_model, reward_model.Config(), reward_model.Hyper(), True
    ),
    "dpo": _dpo("sigmoid"),
    "dpo of adapters": _dpo("sigmoid")._replace(adapters=True),
    "dpo robust": _dpo("robust"),
    "dpo hinge": _dpo("hinge"),
    "ipo of means": _dpo("ipo", length_normalized=True),
    "simpo": _dpo("simpo", beta=2.0),
    "orpo": _dpo("orpo"),
    "grpo": _grpo(),
    "grpo of adapters": _grpo()._replace(adapters=True),
    "grpo, mean of sequences": _grpo(
        aggregation="sequence-mean", correction="mask", correction_level="sequence", kl="k3"
    ),
    "dr. grpo": _grpo(
        aggregation="constant", advantage="dr_grpo", correction_level="sequence-mean", kl="k2"
    ),
    "gspo": _grpo(
        {"eps_low": 0.1, "eps_high": 0.1},
        level="sequence",
        aggregation="sequence-mean",
        advantage="batch_std",
        mask_truncated=True,
    ),
    "cispo": _grpo({"eps_low": 1.0}, loss="cispo", recompute=False, kl="k3"),
    "rloo": _grpo({"overlong_penalty": 1.0}, advantage="rloo", kl_in="reward", overlong_buffer=4),
    "whitened": _grpo({"dual_clip": 1.5}, advantage="whiten"),
    "ppo": _ppo(),
    "ppo, one trunk": _ppo(shared_trunk=True, whiten=False, kl_control="adaptive"),
    "ppo of adapters": _ppo(True, shared_trunk=True),
}


class Parts(NamedTuple):
    """A case in numbers. Columns come from `state`; at `moved`, ratios differ from one."""

    case: Case
    objective: Callable
    state: Any
    moved: Any
    batch: Any


@functools.cache
def parts(name) -> Parts:
    """Makes all of a case, once."""
    case = CASES[name]
    state = case.updater().init(jax.random.key(0), *_params(case), case.hyper)
    moved = state.replace(params=_move(state.params, 1, 0.1 if case.adapters else 0.03))
    return Parts(case, case.objective(), state, moved, batch_of(case.module))


@functools.cache
def _prepare(name, microbatches):
    return jit(CASES[name].updater(microbatches=microbatches).prepare)


def prepare(name, state, batch, hp=None, microbatches=1):
    """Returns (columns, metrics), with one compilation for each case and shape of a batch."""
    return _prepare(name, microbatches)(state, batch, hp or CASES[name].hyper)


@functools.cache
def model_params(seed):
    """Of a model whose distributions are far from uniform."""
    params = jit(MODEL.init)(jax.random.key(seed))
    return {**params, "embedding": 20.0 * params["embedding"]}


def _params(case):
    """Returns what is trained, and what is frozen."""
    base, head = model_params(0), transformer.init_score_head(jax.random.key(5), MODEL.config)
    if case.adapters:
        policy, frozen = _move(lora.init(jax.random.key(1), base, 2), 2, 0.1), Frozen(base=base)
    else:
        policy, frozen = base, Frozen(reference=_move(base, 2, 0.1))
    if case.module is reward_model:
        return {"trunk": policy, "score": head}, frozen.replace(reference=())
    if case.module is not rlhf_ppo:
        return policy, frozen
    value = rlhf_ppo.init_value(case.policy, case.config, jax.random.key(3), model_params(3))
    reward = {"trunk": model_params(4), "score": head}
    return {"policy": policy, "value": value}, frozen.replace(reward=reward)


def _move(params, seed, size):
    """Adds noise of a size to all parameters."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(np.asarray(x) + size * draw.normal(size=x.shape), x.dtype), params
    )


def text_of(seed, length=LENGTH) -> TokenBatch:
    """Rows of prompts of 1 to 3 tokens and answers of 1 to 5, so that means of means differ."""
    draw = np.random.default_rng(seed)
    prompt, answer = draw.integers(1, 4, (ROWS, 1)), draw.integers(1, 6, (ROWS, 1))
    prompt[0], answer[0], answer[1] = 3, 5, 1
    tokens = draw.integers(VOCAB, size=(ROWS, LENGTH))
    tokens = np.pad(tokens, ((0, 0), (0, length - LENGTH)))
    places = np.tile(np.arange(length), (ROWS, 1))
    used = places < prompt + answer
    mask = used & (places >= prompt)
    # A token of a tool, inside an answer.
    mask[0, 5] = False
    columns = (used * tokens, mask, used, used * places)
    return TokenBatch(*(jnp.asarray(x, x.dtype if x is mask else jnp.int32) for x in columns))


def batch_of(module, length=LENGTH):
    """Makes the batch that an algorithm takes, of rows padded to a length."""
    text = text_of(1, length)
    if module is sft:
        return text
    if module in (dpo, reward_model):
        return PreferenceBatch(text, text_of(2, length))
    draw = np.random.default_rng(3)
    log_probs = _log_probs(0.7 if module is grpo else 1.0)[:, :length]
    log_probs = np.pad(log_probs, ((0, 0), (0, length - LENGTH))) * text.mask
    truncated = np.arange(ROWS) == 6
    return RolloutBatch(
        text=text,
        sampler_log_probs=jnp.asarray(log_probs),
        rewards=jnp.asarray(draw.normal(size=ROWS), jnp.float32),
        known=jnp.asarray(np.arange(ROWS) != 2),
        group_ids=jnp.asarray(np.arange(ROWS) // GROUP, jnp.int32),
        truncated=jnp.asarray(truncated),
    )


@functools.cache
def _log_probs(temperature):
    """Log-probabilities by a sampler that is not quite the policy."""
    read = jit(lambda x: PLAIN.log_probs(x, (), text_of(1), temperature).log_probs_BxL)
    noise = np.random.default_rng(4).normal(size=(ROWS, LENGTH))
    return np.asarray(read(model_params(0)) + 0.3 * noise, np.float32)
