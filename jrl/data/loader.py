"""Loader: shuffled, sharded, packed batches whose place in the data is a small value to save.

The records of all epochs form one stream, each epoch in an order of its own that depends on the
seed and the epoch alone. Process p of P takes the positions p, p + P, p + 2 P, ... of it: together
the processes see every record once in every epoch. grain shuffles, and reads ahead in threads.

The state names the batch that was drawn last, not what has been read ahead: a loader that is given
it back draws exactly the next batch. Whoever trains several times on one batch saves the state
from before it was drawn until the last of these steps is done.
"""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jrl.data import packing, tokens
from jrl.data.packing import Batch, Example
from jrl.data.schemas import Record
from jrl.data.sources import Source, place
from jrl.data.tokens import Encoder, TooLong
from jrl.types import check_sizes

__all__ = ["Config", "Loader"]

ZERO = {"may_be_zero": True}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and order of the batches of one process."""

    batch_size: int = 8
    """Rows of a batch, on this process."""
    length: int = 1024
    """Tokens of a row."""
    pack: bool = True
    """Whether a row holds several examples; otherwise each has its own."""
    window: int = 1024
    """How many examples are read at a time to be packed. More pad less and resume slower."""
    too_long: TooLong = "error"
    """What becomes of an example that is longer than a row; `Loader.counts` says how many."""
    shuffle: bool = True
    seed: int = dataclasses.field(default=0, metadata=ZERO)
    epochs: int | None = None
    """How many times the data are passed; None for no end."""
    process_index: int = dataclasses.field(default=0, metadata=ZERO)
    process_count: int = 1
    threads: int = dataclasses.field(default=4, metadata=ZERO)
    """Threads that read and encode ahead; 0 to read when asked."""
    pad_id: int = dataclasses.field(default=0, metadata=ZERO)
    """The token of padding."""


class Loader:
    """An iterator over batches of a source; the same settings give the same batches.

    With an encoder a batch is a dict of arrays (`packing.Batch`). The last batch of the last epoch
    is filled up with padding: no example is left out, and no shape changes. Without packing an
    example that was dropped leaves its row empty. So all processes draw equally many batches, of
    which each holds the same positions of the stream. Packed rows are made of `window` examples of
    one epoch at a time, and processes differ in how many they need: packing on several processes
    therefore goes with `epochs=None`, and every process saves a state of its own.

    Without an encoder a batch is a list of records, as RL needs them: `length` and all that has to
    do with tokens is ignored, and the last list is shorter (on some processes empty).

    Args: `source`; `config`; `encoder` of `tokens.encoder`, None for records.
    Raises: ValueError for an empty source or settings that do not fit. Drawing a batch raises it
    with the record's place for one that is bad or too long.

    >>> records = [{"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(5)]
    >>> answer = tokens.completion(lambda text: list(text.encode()))
    >>> config = Config(batch_size=1, length=10, epochs=1, shuffle=False)
    >>> for batch in Loader(records, config, tokens.encoder("completion", answer)):
    ...     print(bytes(batch["tokens"][0].tolist()), batch["segment_ids"][0])
    b'0+1=11+1=2' [1 1 1 1 1 2 2 2 2 2]
    b'2+1=33+1=4' [1 1 1 1 1 2 2 2 2 2]
    b'4+1=5\\x00\\x00\\x00\\x00\\x00' [1 1 1 1 1 0 0 0 0 0]
    """

    def __init__(self, source: Source, config: Config, encoder: Encoder | None = None):
        _check(source, config, encoder)
        self.config = config
        self._names = encoder.names if encoder else ()
        self._encoded = encoder is not None
        self._packed = config.pack and self._encoded
        self._records = len(source)
        total = sys.maxsize if config.epochs is None else self._records * config.epochs
        # On the last processes the stream may end one position before it does on the first.
        self._own = _share(total, config)
        self._steps = _share(total, dataclasses.replace(config, process_index=0))
        self._examples = _examples(source, config, encoder)
        self._position = self._row = 0
        self._rows: list[list[Any]] = []
        self._counts = {"examples": 0, "tokens": 0, "rows": 0, "truncated": 0, "dropped": 0}
        self._before = (0, dict(self._counts))
        self._dropped_in_a_row = 0

    def __iter__(self) -> "Loader":
        """Returns itself: iterating goes on where the last iteration stopped."""
        return self

    def __next__(self) -> Batch | list[Record]:
        """Draws the next batch; if that fails or is interrupted, none has been drawn."""
        before = self.get_state()
        try:
            rows = self._draw()
        except BaseException:
            self.set_state(before)
            raise
        if not rows:
            raise StopIteration
        if not self._encoded:
            return [record for row in rows for record in row]
        size, length = self.config.batch_size, self.config.length
        return packing.fill(rows, size, length, self._names, self.config.pad_id)

    @property
    def counts(self) -> dict[str, int]:
        """Examples, tokens and rows read so far, and how many were truncated and dropped.

        They include the window that the next rows come from, and are part of the state.
        """
        return dict(self._counts)

    def get_state(self) -> dict[str, Any]:
        """Returns the place in the stream as a dict that JSON can hold, for a checkpoint's meta.

        Without packing it is that of every process, and holds on any number of them, as long as
        the global batch stays as large as it is.
        """
        position, counts = self._before
        row = self._row
        if row == len(self._rows):
            position, counts, row = self._position, self._counts, 0
        scale = 1 if self._packed else self.config.process_count
        return {
            "position": position * scale,
            "row": row,
            "counts": dict(counts),
            "settings": self._settings(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to the place that `get_state` returned, in a loader of the same settings.

        Raises: ValueError naming the first setting that differs, if this number of processes does
        not divide the position, or if that is beyond the last epoch.
        """
        for name, value in self._settings().items():
            saved = state["settings"].get(name)
            if saved != value:
                raise ValueError(
                    f"the data's state was saved with {name}={saved!r}, this loader has {value!r}: "
                    "use the same, or begin without the state"
                )
        scale = 1 if self._packed else self.config.process_count
        if state["position"] % scale:
            raise ValueError(
                f"process_count={scale} does not divide the position {state['position']} of the "
                "state: choose one that does"
            )
        position = state["position"] // scale
        if position + bool(state["row"]) > self._steps:
            raise ValueError(
                f"epochs={self.config.epochs} end before the place of the state: choose more"
            )
        self._position = position
        self._counts = dict(state["counts"])
        self._before = (self._position, dict(self._counts))
        self._rows, self._row, self._dropped_in_a_row = [], 0, 0
        self._examples.set_state({"next_index": min(self._position, self._own)})
        if state["row"]:
            self._read()
            self._row = state["row"]

    def _draw(self) -> list[list[Any]]:
        rows: list[list[Any]] = []
        while len(rows) < self.config.batch_size:
            if self._row == len(self._rows):
                if self._position >= self._steps:
                    break
                self._read()
            take = self._rows[self._row : self._row + self.config.batch_size - len(rows)]
            self._row += len(take)
            rows += take
        return rows

    def _settings(self) -> dict[str, Any]:
        """What the stream depends on."""
        config = self.config
        settings = {"records": self._records, "shuffle": config.shuffle}
        if config.shuffle:
            settings["seed"] = config.seed
        if self._encoded:
            settings |= {"length": config.length, "too_long": config.too_long, "pack": config.pack}
        if self._packed:
            names = ("window", "process_index", "process_count")
            settings |= {name: getattr(config, name) for name in names}
        return settings

    def _read(self) -> None:
        """Reads the next window and makes rows of it; there may be none."""
        self._before = (self._position, dict(self._counts))
        self._rows, self._row = [], 0
        if self._position >= self._own:
            self._position += 1
            self._rows = [[]]
            return
        size = self._window() if self._packed else 1
        read = [next(self._examples) for _ in range(size)]
        self._position += size
        kept: list[Any] = [item.example for item in read if item.example is not None]
        self._watch(len(read), len(kept))
        self._rows = packing.pack(kept, self.config.length) if self._packed else [kept]
        self._count(read, kept)

    def _window(self) -> int:
        """Counts the examples to be read now: those of one epoch, so that none mixes with it."""
        config = self.config
        epoch = (config.process_index + self._position * config.process_count) // self._records
        return min(config.window, _share((epoch + 1) * self._records, config) - self._position)

    def _count(self, read: "list[_Read]", kept: list[Any]) -> None:
        self._counts["examples"] += len(read)
        self._counts["rows"] += len(self._rows)
        self._counts["truncated"] += sum(item.truncated for item in read)
        self._counts["dropped"] += len(read) - len(kept)
        if self._encoded:
            sizes = (part.tokens.size for example in kept for part in example)
            self._counts["tokens"] += sum(sizes)

    def _watch(self, read: int, kept: int) -> None:
        self._dropped_in_a_row = 0 if kept else self._dropped_in_a_row + read
        if self._dropped_in_a_row >= self._records:
            raise ValueError(
                f"all of {self._dropped_in_a_row} examples in a row were longer than "
                f"length={self.config.length} and dropped: raise it"
            )


class _Read(NamedTuple):
    """One example, None if it was too long and dropped; a record where nothing is encoded."""

    example: Example | Record | None
    truncated: bool


class _Encoded:
    """A source of encoded examples: what threads do ahead of time."""

    def __init__(self, source: Source, config: Config, encoder: Encoder | None):
        self.source, self.config, self.encoder = source, config, encoder

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> _Read:
        record = self.source[index]
        if self.encoder is None:
            return _Read(record, False)
        try:
            parts = self.encoder.apply(record)
            return _Read(*tokens.fit(parts, self.config.length, self.config.too_long))
        except ValueError as error:
            raise ValueError(f"{place(self.source, index)}: {error}") from error


def _examples(source: Source, config: Config, encoder: Encoder | None):
    """Makes grain's iterator over this process's part of the stream."""
    try:
        import grain
    except ImportError as error:
        raise ImportError("loading data needs grain: pip install 'jrl[data]'") from error
    dataset = grain.MapDataset.source(_Encoded(source, config, encoder))
    if config.shuffle:
        # grain adds the epoch to the seed: neighbouring seeds must not share epochs.
        seed = np.random.SeedSequence(config.seed).generate_state(1)[0]
        dataset = dataset.shuffle(seed=int(seed))
    dataset = dataset.repeat(config.epochs)[config.process_index :: config.process_count]
    ahead = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=32 * config.threads)
    return iter(dataset.to_iter_dataset(ahead))


def _share(positions: int, config: Config) -> int:
    """Counts the positions before `positions` that are this process's."""
    return len(range(config.process_index, positions, config.process_count))


def _check(source: Source, config: Config, encoder: Encoder | None) -> None:
    check_sizes("config", config)
    if config.too_long not in ("error", "drop", "truncate"):
        raise ValueError(
            f"config.too_long must be 'error', 'drop' or 'truncate', got {config.too_long!r}"
        )
    if config.process_index >= config.process_count:
        raise ValueError(
            f"config.process_index must be below process_count={config.process_count}, "
            f"got {config.process_index}"
        )
    several = config.process_count > 1 and config.epochs is not None
    if several and config.pack and encoder is not None:
        raise ValueError(
            "config.epochs must be None when several processes pack: they would end at "
            "different times; or choose pack=False"
        )
    if not len(source):
        raise ValueError("the source is empty: there is nothing to load")
