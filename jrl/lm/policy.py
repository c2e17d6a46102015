"""What algorithms need of a language model: log-probabilities of batches of tokens.

A batch is `[B, L]`: rows of one sequence, padded on the right, or of several that are packed.
Everything about a token stands at its own place: its log-probability given the tokens before it,
the reward and the advantage of having chosen it, and in the mask whether anybody did.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.core import Tracer

from jrl import tree
from jrl.lm import log_probs, transformer
from jrl.lm.log_probs import TokenLogProbs
from jrl.lm.transformer import Transformer
from jrl.losses.tokens import reward_at_last_token
from jrl.types import Array, Bool, Float, Leaf, Params, PyTree, Scalar

__all__ = [
    "Frozen",
    "Policy",
    "PreferenceBatch",
    "RolloutBatch",
    "TokenBatch",
    "by_parts",
    "certainly",
    "filled",
    "judged",
    "last_score",
]


class TokenBatch(struct.PyTreeNode):
    """Rows of tokens, [B, L] each."""

    tokens: Leaf
    """Ids, int32."""
    mask: Leaf
    """Which tokens are learned from, bool: completions with their end, not prompts."""
    segment_ids: Leaf
    """Which text of its row a token belongs to, from 1; 0 is padding. int32."""
    positions: Leaf
    """Places in the text, from 0. int32."""


class PreferenceBatch(struct.PyTreeNode):
    """Pairs of answers to the same prompts; row i of one belongs to row i of the other.

    A row is one answer. Packed rows (`segment_ids` above 1) are not seen in a compiled program:
    they would be taken for one long answer, so pairs are loaded with `pack=False`.
    """

    chosen: TokenBatch
    rejected: TokenBatch


def filled(pairs: Any) -> Bool[Array, " B"]:
    """Says which rows of a batch with `chosen` and `rejected` hold a pair.

    Loaders leave rows empty: at the end of the data, and for examples that were dropped.
    """
    return jnp.any(pairs.chosen.mask, axis=1) & jnp.any(pairs.rejected.mask, axis=1)


def _whole(params: Params, base: Params) -> Params:
    """The parameters that are trained are all there are."""
    return params


class RolloutBatch(struct.PyTreeNode):
    """Completions that a policy sampled, one a row, and what they were worth."""

    text: TokenBatch
    """[B, L]; the mask is true on what the policy chose."""
    sampler_log_probs: Leaf
    """[B, L] of the tokens by the distribution they were drawn from, before it was truncated."""
    rewards: Leaf
    """[B]"""
    known: Leaf
    """[B] bool: whether the reward function gave a number."""
    group_ids: Leaf
    """[B] int32: equal for completions of the same prompt, from 0."""
    truncated: Leaf
    """[B] bool: cut off before the end of sequence."""


class Frozen(struct.PyTreeNode):
    """Parameters that are used and not trained; `()` for those that there are not.

    They are kept in any dtype, and cast where they are used to the one that is computed in: what is
    kept in bfloat16 to save memory wants `compute_dtype="bfloat16"`, or a copy is made.
    """

    base: Leaf = ()
    """What adapters are added to."""
    reference: Leaf = ()
    """What a policy is held close to; with adapters the base, unless given."""
    reward: Leaf = ()
    """A reward model: {"trunk", "score"}."""


class Policy(NamedTuple):
    """A transformer whose parameters are trained as they are, or as adapters on a frozen base.

    `merge(params, base)` makes the parameters of `model` from those that are trained. What reads
    tokens computes in the dtype of `params`, whatever that of `base` is.
    """

    model: Transformer
    merge: Callable[[Params, Params], Params] = _whole

    def merged(self, params: Params, base: Params) -> Params:
        """Returns the parameters of `model`, in the dtype of those that are trained."""
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return tree.cast(self.merge(params, base), dtype)

    def hidden(self, params: Params, base: Params, batch: TokenBatch) -> Float[Array, "B L D"]:
        """Returns the last features of every token."""
        params = self.merged(params, base)
        return self.model.hidden(params, batch.tokens, batch.positions, batch.segment_ids)[0]

    def log_probs(
        self, params: Params, base: Params, batch: TokenBatch, temperature: Scalar = 1.0
    ) -> TokenLogProbs:
        """Returns log-probabilities and entropies, [B, L] float32, each at its token's place.

        Of softmax(logits / temperature): the distribution that tokens are drawn from.
        """
        return self.read(params, base, batch.tokens, self.hidden(params, base, batch), temperature)

    def read(
        self, params: Params, base: Params, tokens, hidden_BxLxD, temperature: Scalar = 1.0
    ) -> TokenLogProbs:
        """The same from features that are there already."""
        head = self.model.head(self.merged(params, base))
        softcap = self.model.config.final_softcap
        return log_probs.next_token_log_probs(hidden_BxLxD, head, tokens, temperature, softcap)

    def reference(self, frozen: Frozen) -> Params:
        """Returns the parameters that a policy is held close to.

        Raises ValueError if there are none, or those of another model.
        """
        params = frozen.reference if jax.tree.leaves(frozen.reference) else frozen.base
        wanted = _shapes(jax.eval_shape(self.model.init, jax.random.key(0)))
        if not jax.tree.leaves(params):
            raise ValueError("frozen.reference: missing, and there is no base to take its place")
        if (found := _shapes(params)) != wanted:
            names = sorted(set(found.items()) ^ set(wanted.items()))
            raise ValueError(
                f"frozen.reference: not of the policy's shape, first at {names[0][0]}: "
                "give the parameters of the same configuration"
            )
        return params

    def reference_log_probs(
        self, frozen: Frozen, batch: TokenBatch, temperature: Scalar = 1.0
    ) -> Float[Array, "B L"]:
        """Returns the reference's log-probabilities of the tokens, without a gradient."""
        plain = self._replace(merge=_whole)
        params = jax.lax.stop_gradient(self.reference(frozen))
        return plain.log_probs(params, (), batch, temperature).log_probs_BxL


def last_score(
    head: Params, hidden_BxLxD: Float[Array, "B L D"], mask: Bool[Array, "B L"]
) -> Float[Array, " B"]:
    """Reads a score head at the last token of the mask of each row: what a reward model says."""
    scores = transformer.scores(head, hidden_BxLxD)
    return jnp.sum(reward_at_last_token(jnp.ones_like(scores[:, 0]), mask) * scores, axis=1)


def judged(model: Transformer, params: Params, text: TokenBatch) -> Float[Array, " B"]:
    """Returns what a reward model says of each row, without a gradient.

    Its `params` are {"trunk", "score"}; it is read at the last token of the mask.
    """
    params = jax.lax.stop_gradient(params)
    hidden, _ = model.hidden(params["trunk"], text.tokens, text.positions, text.segment_ids)
    return last_score(params["score"], hidden, text.mask)


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): x.shape for path, x in leaves}


def certainly(condition: Any) -> bool:
    """Says whether a condition is known to be true, of any number if there are several.

    Of a traced number nothing is known. It is for what a compiled program cannot refuse.

    >>> certainly(0.5 > 0), jax.jit(lambda x: jnp.bool_(certainly(x > 0)))(0.5).item()
    (True, False)
    """
    return not isinstance(condition, Tracer) and bool(np.any(condition))


def by_parts(function: Callable[[PyTree], PyTree], batch: PyTree, parts: int) -> PyTree:
    """Applies a function to `parts` equal parts of a batch, one after another, and rejoins them.

    What is computed without gradients before an update would otherwise need the memory of the
    whole batch, which the update itself never does. Raises ValueError if the rows do not divide.

    >>> by_parts(lambda x: 2 * x, jnp.arange(4), 2)
    Array([0, 2, 4, 6], dtype=int32)
    """
    if parts == 1:
        return function(batch)
    rows = jax.tree.leaves(batch)[0].shape[0]
    if rows % parts:
        raise ValueError(f"microbatches={parts} does not divide the batch of {rows} examples")
    cut = jax.tree.map(lambda x: x.reshape(parts, rows // parts, *x.shape[1:]), batch)
    joined = jax.lax.map(function, cut)
    return jax.tree.map(lambda x: jnp.reshape(x, (rows, *x.shape[2:])), joined)
