"""Batches of a data set: texts, or pairs of answers."""

from collections.abc import Callable, Sequence
from typing import Any

from jrl.data.loader import Loader
from jrl.lm.policy import PreferenceBatch, TokenBatch
from jrl.streams.asking import Exam
from jrl.streams.contract import Drawn, Held
from jrl.types import Params, PyTree

__all__ = ["Examples", "batch_of"]


def batch_of(arrays: Any) -> TokenBatch | PreferenceBatch:
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
    """A `Stream` of batches of a loader, measured on batches that are held out and by an exam."""

    def __init__(self, loader: Loader, held_out: Sequence[PyTree] = (), exam: Exam | None = None):
        self.loader, self.held_out, self.exam = loader, list(held_out), exam

    def draw(self, policy: Callable[[], Params], update: int) -> Drawn:
        """Draws the next batch of the loader."""
        return Drawn(batch_of(next(self.loader)))

    def evaluate(self, policy: Callable[[], Params]) -> Held:
        """Returns the held-out batches, and what the exam found."""
        found = self.exam(policy) if self.exam else Held()
        return found._replace(batches=self.held_out)

    def state(self) -> dict[str, Any]:
        """Returns the loader's place."""
        return self.loader.get_state()

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to a place."""
        self.loader.set_state(state)

    def close(self) -> None:
        """Ends the exam's processes."""
        if self.exam:
            self.exam.asker.close()
