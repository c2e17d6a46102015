"""What a run of a stream experiment is made of: a task, which starts a stream and an updater."""

import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jrl.lm.policy import Frozen
from jrl.types import Metrics, Params, PyTree, Updater

__all__ = ["Drawn", "Held", "Start", "Stream", "Task"]

Samples = Iterable[dict[str, Any]]
"""For the eye: they are printed and kept in samples.jsonl."""


class Drawn(NamedTuple):
    """What a stream gave for an update: a batch, and what was measured on the way."""

    batch: PyTree
    metrics: Metrics = {}
    samples: Samples = ()
    notes: Sequence[str] = ()
    """What is said once, as of a reward that failed for the first time."""


class Held(NamedTuple):
    """What a stream found on held-out data; the updater's `evaluate` measures the batches."""

    batches: Sequence[PyTree] = ()
    metrics: Metrics = {}
    samples: Samples = ()
    notes: Sequence[str] = ()


@runtime_checkable
class Stream(Protocol):
    """Where batches come from. `policy()` returns the parameters of the whole model, as it is."""

    def draw(self, policy: Callable[[], Params], update: int) -> Drawn:
        """Draws the batch of an update; the same place and update give the same batch."""
        ...

    def evaluate(self, policy: Callable[[], Params]) -> Held:
        """Measures on held-out data."""
        ...

    def state(self) -> Any:
        """Returns the place in the data, as JSON has it."""
        ...

    def restore(self, state: Any) -> None:
        """Goes to a place in the data."""
        ...

    def close(self) -> None:
        """Ends threads and processes."""
        ...


class Start(NamedTuple):
    """A run that is about to begin."""

    updater: Updater
    params: Params
    frozen: Frozen
    stream: Stream
    save: Callable[[Params, pathlib.Path], None]
    """Writes what `updater.policy` returns to a Hugging Face folder."""


@runtime_checkable
class Task(Protocol):
    """What an experiment is about: the model, the data, the rewards."""

    def validate(self, config: Any, hyper: Any) -> None:
        """Raises ValueError with one line that names the field and the fix; loads no weights."""
        ...

    def start(self, config: Any, hyper: Any, seed: int) -> Start:
        """Loads the model and opens the data. Raises ValueError where these do not fit."""
        ...
