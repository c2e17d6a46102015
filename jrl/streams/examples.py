"""Batches of a data set: texts, or pairs of answers."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jrl.data.loader import Loader
from jrl.lm.policy import PreferenceBatch, TokenBatch
from jrl.streams.contract import Drawn
from jrl.types import Params, PyTree

__all__ = ["Examples", "batch_of"]


def batch_of(arrays: dict[str, Any]) -> TokenBatch | PreferenceBatch:
    """Makes a batch of what a loader drew: of texts, or of pairs where it has `chosen`.

    >>> import numpy as np
    >>> x = np.ones((1, 2), np.int32)
    >>> batch_of({"tokens": x, "mask": x > 0, "segment_ids": x, "positions": x}).tokens.shape
    (1, 2)
    """
    if "chosen" in arrays:
        return PreferenceBatch(*(TokenBatch(**arrays[name]) for name in ("chosen", "rejected")))
    return TokenBatch(**arrays)


class Examples:
    """A `Stream` of batches of a loader, measured on batches that are held out.

    `watch(policy)`, if given, returns what else an evaluation finds: samples, say.
    """

    def __init__(
        self,
        loader: Loader,
        held_out: Sequence[PyTree] = (),
        watch: Callable[[Callable[[], Params]], Drawn] | None = None,
        close: Callable[[], None] = lambda: None,
    ):
        self.loader, self.held_out, self.watch, self.close = loader, held_out, watch, close

    def draw(self, policy: Callable[[], Params], update: int) -> Drawn:
        """Draws the next batch of the loader."""
        arrays: Any = next(self.loader)
        return Drawn(batch_of(arrays))

    def evaluate(self, policy: Callable[[], Params]) -> Drawn:
        """Returns the held-out batches as one, and what `watch` found."""
        found = self.watch(policy) if self.watch else Drawn(None)
        if not self.held_out:
            return found
        batch = jax.tree.map(lambda *x: jax.numpy.concatenate(x), *self.held_out)
        return found._replace(batch=batch)

    def state(self) -> dict[str, Any]:
        """Returns the loader's place."""
        return self.loader.get_state()

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to a place."""
        self.loader.set_state(state)
