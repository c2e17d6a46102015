"""A sampler with a fixed number of slots, which requests pass through one after another.

All of it is one compiled program. A request waits in a queue on the device until a slot is free;
its prompt is then run through the model at once, and after that each step gives every slot its next
token. A slot whose request is finished takes the next one before the following step, so that a long
completion keeps nobody waiting. Nothing depends on how many requests there are or how long they
are, so that nothing is ever compiled again.

A completion does not depend on its slot or its neighbours: a token's random numbers come from the
key, the request's number and the token's index, and its index in the cache is its position.

Axes: B slots, Q requests that are queued, running or not yet collected, S positions of the cache,
L tokens of a prompt with its padding, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jrl.lm import requests, sampling, transformer
from jrl.lm.attention import init_cache
from jrl.lm.requests import Requests
from jrl.lm.transformer import Transformer
from jrl.types import Array, Int, Key, Leaf, Params, check_sizes

__all__ = ["Config", "Sampler", "State", "make"]

EMPTY, QUEUED, RUNNING, STOPPED, FULL = range(5)
"""What becomes of a row: the last two are finished, by a stop id or by their length."""

FOREVER = np.int32(2**31 - 1)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a sampler, compiled in."""

    slots: int = 16
    """Requests that run at the same time."""
    length: int = 512
    """Positions of the cache: the most tokens of a prompt and its completion."""
    queue: int = 256
    """Requests that the device holds, running and waiting; more wait on the host."""
    buckets: tuple[int, ...] = (32, 128, 512, 2048)
    """Lengths that prompts are padded to; `length` is one more. Each compiles two programs."""
    prefill_tokens: int = 8192
    """The most tokens of prompts, padding included, that the model runs at once."""
    stops: int = 8
    """The most stop ids of a request."""
    chunk: int = 64
    """Steps between two looks of the host, while it holds requests that wait."""
    dtype: str = "float32"
    """Of the cache: float32 or bfloat16."""
    unroll: bool = True
    """Give every layer its own arrays while it decodes: about 1.7 times as fast on a CPU, but it
    copies the parameters once per call and compiles longer."""

    def validate(self) -> None:
        """Raises ValueError with the name of the field that does not fit."""
        check_sizes("config", self)
        if self.queue < self.slots:
            raise ValueError(f"config.queue={self.queue} must be at least slots={self.slots}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"config.dtype must be float32 or bfloat16, got {self.dtype!r}")

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Rows and tokens of prompts that are run at once: many first, short ones first."""
        lengths = sorted({*(x for x in self.buckets if x < self.length), self.length})
        many = [(min(self.slots, max(1, self.prefill_tokens // x)), x) for x in lengths]
        return sorted({*many, *((1, x) for x in lengths)}, key=lambda shape: (-shape[0], shape[1]))


class State(struct.PyTreeNode):
    """All that a sampler knows: arrays only."""

    key: Leaf
    cache: Leaf
    slot_B: Leaf
    """Row of the request that a slot works on, Q for none."""
    requests: Requests
    status_Q: Leaf
    arrival_Q: Leaf
    """Which in order a request came as."""
    length_Q: Leaf
    """Tokens so far, prompt included."""
    log_probs_QxS: Leaf
    tempered_QxS: Leaf
    raw_QxS: Leaf
    versions_QxS: Leaf
    steps: Leaf
    """Decoding steps so far: tokens over steps and slots is how busy they were."""
    arrivals: Leaf
    """Requests so far."""


class Sampler(NamedTuple):
    """A sampler as functions, compiled once; a state that is passed to one is used up (donated).

    `init(key) -> state`: `key` is the root of all random numbers.
    `submit(state, requests) -> state`: appends to the queue what `requests.pack` made; there must
    be as many of the `config.queue` rows free, that is neither running, queued nor uncollected.
    `advance(params, state, version, steps) -> state`: at most `steps` (int32) steps, less if
    nothing is left to do; `version` (int32) is noted at every token.
    `refresh(state) -> state`: after a change of the weights, sends the running requests back to the
    front of the queue with what they have, so that the next `advance` computes their caches anew.
    `clear(state) -> state`: forgets what is finished; `generation.collect` reads it before.
    """

    model: Transformer
    config: Config
    init: Callable[[Key], State]
    submit: Callable[[State, Requests], State]
    advance: Callable[[Params, State, Any, Any], State]
    refresh: Callable[[State], State]
    clear: Callable[[State], State]


def make(model: Transformer, config: Config = Config()) -> Sampler:
    """Makes a sampler of a model.

    Source: refilling of slots as in Orca, Yu et al. 2022, section 3.1,
    https://www.usenix.org/conference/osdi22/presentation/yu; new weights in the middle of a
    completion, Fu et al. 2025, section 4.1, https://arxiv.org/abs/2505.24298.
    Args: `model`; `config` static.
    Returns: `Sampler`; calls of one share their compiled programs.
    Raises: ValueError if the sizes do not fit together.
    Deviations: slots have whole caches (no pages), and a prompt is run in one piece, so its scores
    take memory of its padded length squared. The last token of a prompt is run again by the first
    step, so that every token is drawn by one and the same program.

    >>> model = transformer.make(transformer.Config(num_layers=1, width=8))
    >>> sampler = make(model, Config(slots=2, length=16, queue=4))
    >>> state = sampler.init(jax.random.key(0))
    >>> state.slot_B, state.requests.tokens_QxS.shape  # row 4 is none
    (Array([4, 4], dtype=int32), (4, 16))
    """
    config.validate()

    def step(params, decode_params, version, state):
        state = jax.lax.while_loop(
            _can_fill, lambda state: _fill(model, config, params, state), state
        )
        return _decode(model, decode_params, state, version)

    def advance(params, state, version, steps):
        decode_params = params
        if config.unroll:
            decode_params = {**params, "layers": transformer.unstack(params["layers"])}
        last = state.steps + jnp.minimum(steps, FOREVER - state.steps)

        def go_on(state):
            unfinished = (state.status_Q == QUEUED) | (state.status_Q == RUNNING)
            return (state.steps < last) & jnp.any(unfinished)

        return jax.lax.while_loop(
            go_on, lambda state: step(params, decode_params, version, state), state
        )

    def refresh(state):
        running = state.status_Q == RUNNING
        return state.replace(
            status_Q=jnp.where(running, QUEUED, state.status_Q),
            slot_B=jnp.full_like(state.slot_B, config.queue),
        )

    return Sampler(
        model,
        config,
        jax.jit(lambda key: _init(model, config, key)),
        jax.jit(_submit, donate_argnums=0),
        jax.jit(advance, donate_argnums=1),
        jax.jit(refresh, donate_argnums=0),
        jax.jit(_clear, donate_argnums=0),
    )


def _init(model: Transformer, config: Config, key: Key) -> State:
    cache = init_cache(model.config, config.slots, config.length, jnp.dtype(config.dtype))
    q, s = config.queue, config.length

    def zeros(*shape):
        return jnp.zeros(shape, jnp.int32)

    def floats():
        return jnp.zeros((q, s))

    def filled(x):
        # All numbers of an empty column are one: no large constant in the program.
        return jnp.full(x.shape, x.flat[0], x.dtype)

    return State(
        key=key,
        cache=transformer.unstack(cache) if config.unroll else cache,
        slot_B=jnp.full(config.slots, q, jnp.int32),
        requests=jax.tree.map(filled, requests.pack([], [], [], q, s, config.stops)),
        status_Q=zeros(q),
        arrival_Q=zeros(q),
        length_Q=zeros(q),
        log_probs_QxS=floats(),
        tempered_QxS=floats(),
        raw_QxS=floats(),
        versions_QxS=zeros(q, s),
        steps=zeros(),
        arrivals=zeros(),
    )


def _submit(state: State, new: Requests) -> State:
    """Puts the rows of `new` that have a number into empty rows; the queue goes by arrival."""
    size = state.status_Q.shape[0]
    (empty_Q,) = jnp.nonzero(state.status_Q == EMPTY, size=size, fill_value=size)
    row_Q = jnp.where(new.id_Q >= 0, empty_Q, size)

    def put(x, value):
        return x.at[row_Q].set(value, mode="drop")

    arrivals = state.arrivals + jnp.cumsum(new.id_Q >= 0)
    return state.replace(
        requests=jax.tree.map(put, state.requests, new),
        status_Q=put(state.status_Q, QUEUED),
        arrival_Q=put(state.arrival_Q, arrivals),
        length_Q=put(state.length_Q, new.prompt_Q),
        arrivals=arrivals[-1],
    )


def _can_fill(state: State) -> Array:
    return jnp.any(state.status_Q == QUEUED) & jnp.any(state.slot_B == state.status_Q.shape[0])


def _fill(model: Transformer, config: Config, params: Params, state: State) -> State:
    """Gives free slots to the requests at the front of the queue, in one of the shapes."""
    queued_Q = state.status_Q == QUEUED
    count = jnp.minimum(jnp.sum(state.slot_B == config.queue), jnp.sum(queued_Q))
    order = jnp.argsort(jnp.where(queued_Q, state.arrival_Q, FOREVER))[: config.slots]
    chosen = jnp.arange(config.slots) < count
    # All but the last token of each go through the model here.
    longest = jax.lax.cummax(jnp.where(chosen, state.length_Q[order] - 1, 0))
    row_B = jnp.where(chosen, order, config.queue)
    (free_B,) = jnp.nonzero(
        state.slot_B == config.queue, size=config.slots, fill_value=config.slots
    )
    fits = jnp.stack(
        [
            (longest[rows - 1] <= length) & ((rows == 1) | (2 * count > rows))
            for rows, length in config.shapes
        ]
    )
    shape = jnp.argmax(fits).astype(jnp.int32)
    # Loops of at most one trip: XLA copies the whole cache for a conditional, for a loop nothing.
    for i, (rows, length) in enumerate(config.shapes):

        def fill(carry, rows=rows, length=length):
            state = _prefill(model, params, carry[1], row_B[:rows], free_B[:rows], length)
            return jnp.int32(-1), state

        shape, state = jax.lax.while_loop(lambda c, i=i: c[0] == i, fill, (shape, state))
    return state


def _prefill(model: Transformer, params: Params, state: State, row_R, slot_R, length: int):
    """Runs the first `length` tokens of some requests through the model, into their slots."""
    size = state.status_Q.shape[0]
    slot_R = jnp.where(row_R < size, slot_R, state.slot_B.shape[0])
    tokens_RxL = state.requests.tokens_QxS.at[row_R, :length].get(mode="fill", fill_value=0)
    positions_RxL = jnp.broadcast_to(jnp.arange(length), tokens_RxL.shape)
    layers = state.cache if isinstance(state.cache, tuple) else (state.cache,)
    dtype = layers[0].k_layersxBxKxSxH.dtype
    new = init_cache(model.config, tokens_RxL.shape[0], length, dtype)
    _, new = model.hidden(params, tokens_RxL, positions_RxL, cache=new)

    def put(x, value):
        return x.at[:, slot_R, :, :length].set(value, mode="drop")

    new = transformer.unstack(new) if isinstance(state.cache, tuple) else new
    return state.replace(
        cache=jax.tree.map(put, state.cache, new),
        slot_B=state.slot_B.at[slot_R].set(row_R, mode="drop"),
        status_Q=state.status_Q.at[row_R].set(RUNNING, mode="drop"),
    )


def _decode(model: Transformer, params: Params, state: State, version: Int[Array, ""]) -> State:
    """Draws the next token of every slot."""
    size, length = state.requests.tokens_QxS.shape
    row_B, asked = state.slot_B, state.requests

    def of(x_Q, idle):
        return x_Q.at[row_B].get(mode="fill", fill_value=idle)

    # Idle slots run along behind the cache, where nothing is written.
    length_B = of(state.length_Q, length + 1)
    tokens_B = asked.tokens_QxS.at[row_B, length_B - 1].get(mode="fill", fill_value=0)
    hidden_Bx1xD, cache = model.hidden(
        params, tokens_B[:, None], (length_B - 1)[:, None], cache=state.cache
    )
    logits_BxV = model.logits(params, hidden_Bx1xD)[:, 0]

    def key(number, index):
        return jax.random.fold_in(jax.random.fold_in(state.key, number), index)

    drawn = sampling.draw(
        jax.vmap(key)(of(asked.id_Q, 0), length_B - of(asked.prompt_Q, 0)),
        logits_BxV,
        of(asked.temperature_Q, 0.0),
        of(asked.top_k_Q, 0),
        of(asked.top_p_Q, 1.0),
        of(asked.min_p_Q, 0.0),
    )
    stopped_B = jnp.any(drawn.tokens_B[:, None] == of(asked.stop_QxE, -1), axis=-1)
    full_B = length_B + 1 >= of(asked.limit_Q, FOREVER)
    status_B = jnp.where(stopped_B, STOPPED, jnp.where(full_B, FULL, RUNNING))

    def put(x_QxS, value_B):
        return x_QxS.at[row_B, length_B].set(value_B, mode="drop")

    return state.replace(
        cache=cache,
        requests=asked.replace(tokens_QxS=put(asked.tokens_QxS, drawn.tokens_B)),
        log_probs_QxS=put(state.log_probs_QxS, drawn.log_probs_B),
        tempered_QxS=put(state.tempered_QxS, drawn.tempered_log_probs_B),
        raw_QxS=put(state.raw_QxS, drawn.raw_log_probs_B),
        versions_QxS=put(state.versions_QxS, version),
        length_Q=state.length_Q.at[row_B].add(1, mode="drop"),
        status_Q=state.status_Q.at[row_B].set(status_B, mode="drop"),
        slot_B=jnp.where(status_B == RUNNING, row_B, size),
        steps=state.steps + 1,
    )


def _clear(state: State) -> State:
    return state.replace(status_Q=jnp.where(state.status_Q >= STOPPED, EMPTY, state.status_Q))
