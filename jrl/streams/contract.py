"""What a run of a stream experiment is made of: a task, which starts a stream and an updater."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jrl.lm.policy import Frozen
from jrl.types import Metrics, Params, PyTree, Updater

__all__ = ["Drawn", "Start", "Stream", "Task"]


class Drawn(NamedTuple):
    """What a stream gave: a batch, what was measured on the way, and samples to show."""

    batch: PyTree
    metrics: Metrics = {}
    samples: Iterable[dict[str, Any]] = ()
    """For the eye: they are printed and kept in samples.jsonl."""


@runtime_checkable
class Stream(Protocol):
    """Where batches come from. `policy()` returns the parameters of the whole model, as it is."""

    def draw(self, policy: Callable[[], Params], update: int) -> Drawn:
        """Draws the batch of an update; the same place and update give the same batch."""
        ...

    def evaluate(self, policy: Callable[[], Params]) -> Drawn:
        """Measures on held-out data; a batch that is not None goes to the updater's `evaluate`."""
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


@runtime_checkable
class Task(Protocol):
    """What an experiment is about: the model, the data, the rewards."""

    def validate(self, config: Any) -> None:
        """Raises ValueError with one line that names the field and the fix; loads nothing."""
        ...

    def start(self, config: Any, seed: int, mesh: Any = None) -> Start:
        """Loads the model and opens the data."""
        ...
