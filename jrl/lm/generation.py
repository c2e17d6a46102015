"""Completions from a sampler: all of a list of prompts, one as it grows, or what is finished."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jrl.lm import requests
from jrl.lm.requests import Completion, Settings
from jrl.lm.sampler import FOREVER, FULL, RUNNING, STOPPED, Sampler, State
from jrl.losses.kl import kl_k3
from jrl.types import Array, Bool, Float, Key, Metrics, Params

__all__ = ["collect", "generate", "mismatch", "stream"]

FINISH = {STOPPED: "stop", FULL: "length"}
SETTINGS = Settings()


def collect(sampler: Sampler, state: State) -> tuple[State, list[Completion]]:
    """Takes out the completions that are finished, in order of arrival; uses the state up."""
    completions = _completions(state)
    return (sampler.clear(state) if completions else state), completions


def generate(
    sampler: Sampler,
    params: Params,
    prompts: Sequence[Any],
    key: Key,
    settings: Settings | Sequence[Settings] = SETTINGS,
    version: int = 0,
) -> list[Completion]:
    """Completes prompts; any number of them, each with its own settings if those are a list.

    Args: `prompts` lists or arrays of token ids; `key` consumed; `version` noted at every token.
    Returns: completions in the order of the prompts. Those of prompt i depend on the key and i, but
    not on the other prompts or the sampler's sizes, up to rounding.
    Raises: ValueError, before any work, for prompts that are empty, too long for the cache or not
    of the vocabulary, and for settings out of range.

    >>> from jrl.lm import config, sampler, transformer
    >>> model = transformer.make(config.Config(num_layers=1, width=8))
    >>> few = sampler.make(model, sampler.Config(slots=2, length=16, queue=4, buckets=()))
    >>> params = model.init(jax.random.key(0))
    >>> settings = Settings(max_new_tokens=5)
    >>> out = generate(few, params, [[1, 2, 3], [4]], jax.random.key(1), settings)
    >>> [len(x.tokens) for x in out], out[0].finish
    ([5, 5], 'length')
    """
    chosen = [settings] * len(prompts) if isinstance(settings, Settings) else list(settings)
    if len(chosen) != len(prompts):
        raise ValueError(f"settings must be one or {len(prompts)} like prompts, got {len(chosen)}")
    c = sampler.config
    requests.check(prompts, chosen, sampler.model.config.vocab_size, c.length, c.stops)
    state, done, sent = sampler.init(key), [], 0
    while len(done) < len(prompts):
        now = slice(sent, sent + c.queue - (sent - len(done)))
        ids = range(len(prompts))[now]
        if ids:
            packed = requests.pack(prompts[now], chosen[now], ids, c.queue, c.length, c.stops)
            state = sampler.submit(state, packed)
            sent += len(ids)
        steps = FOREVER if sent == len(prompts) else np.int32(c.chunk)
        state = sampler.advance(params, state, np.int32(version), steps)
        state, completions = collect(sampler, state)
        done += completions
    return sorted(done, key=lambda completion: completion.request)


def mismatch(
    sampler_log_probs: Float[Array, "*batch"],
    trainer_log_probs: Float[Array, "*batch"],
    mask: Bool[Array, "*batch"],
) -> Metrics:
    """Compares what sampler and trainer say about the same tokens, for the metrics of a step.

        sampler_gap = max |log p_trainer - log p_sampler|
        sampler_k3  = mean of rho - 1 - log rho,  rho = p_trainer / p_sampler

    Source: k3, Schulman 2020, http://joschu.net/blog/kl-approx.html: an estimate of
    KL(sampler || trainer), as the sampler drew the tokens.
    Args: [*batch] each; `tempered_log_probs` (or raw ones) of completions and those of the same
    weights at the same temperature; `mask` true on the completions' tokens.
    Returns: (sum, weight) of both. The maximum weighs 1: over several batches it is their mean.

    >>> ours, theirs = jnp.log(jnp.array([0.5, 0.25])), jnp.log(jnp.array([0.5, 0.5]))
    >>> found = mismatch(ours, theirs, jnp.ones(2, bool))
    >>> {name: f"{total:.4f} of {weight}" for name, (total, weight) in found.items()}
    {'sampler_gap': '0.6931 of 1.0', 'sampler_k3': '0.3069 of 2.0'}
    """
    difference = jnp.where(mask, jnp.abs(trainer_log_probs - sampler_log_probs), 0.0)
    k3 = kl_k3(sampler_log_probs, trainer_log_probs)
    count = jnp.sum(mask, dtype=jnp.float32)
    return {
        "sampler_gap": (jnp.max(difference), jnp.float32(1)),
        "sampler_k3": (jnp.sum(jnp.where(mask, k3, 0.0)), count),
    }


def stream(
    sampler: Sampler,
    params: Params,
    prompt: Any,
    key: Key,
    settings: Settings = SETTINGS,
    every: int = 8,
) -> Iterator[Completion]:
    """Completes one prompt and yields what it has after `every` tokens, and when it is finished.

    The last of these is what `generate` would give, those before begin like it and have the
    `finish` "". Raises ValueError as `generate`, and for `every` below 1.
    """
    c = sampler.config
    requests.check([prompt], [settings], sampler.model.config.vocab_size, c.length, c.stops)
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    packed = requests.pack([prompt], [settings], [0], c.queue, c.length, c.stops)
    state = sampler.submit(sampler.init(key), packed)
    finished = False
    while not finished:
        state = sampler.advance(params, state, np.int32(0), np.int32(every))
        (completion,) = _completions(state, (RUNNING, STOPPED, FULL))
        finished = completion.finish != ""
        yield completion


def _completions(state: State, statuses=(STOPPED, FULL)) -> list[Completion]:
    """Fetches all requests of some statuses at once, and nothing if there are none."""
    status_Q, arrival_Q = jax.device_get((state.status_Q, state.arrival_Q))
    rows = [row for row in np.argsort(arrival_Q, kind="stable") if status_Q[row] in statuses]
    if not rows:
        return []
    asked = state.requests
    numbers, begins, ends = jax.device_get((asked.id_Q, asked.prompt_Q, state.length_Q))
    columns = (asked.tokens_QxS, state.log_probs_QxS, state.tempered_QxS, state.raw_QxS)
    columns = jax.device_get((*columns, state.versions_QxS))
    completions = []
    for row in rows:
        tokens, log_probs, tempered, raw, versions = (
            x[row, begins[row] : ends[row]].copy() for x in columns
        )
        finish = FINISH.get(int(status_Q[row]), "")
        completions.append(
            Completion(int(numbers[row]), tokens, log_probs, tempered, raw, versions, finish)
        )
    return completions
