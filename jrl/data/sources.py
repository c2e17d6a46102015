"""Sources: sequences of records with random access, whatever they are read from."""

import bisect
import itertools
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jrl.data.schemas import Record, Schema

__all__ = ["Concatenated", "Source", "concatenate", "place"]


@runtime_checkable
class Source(Protocol):
    """What a `Loader` reads: a length, and records by index. A list of records is one."""

    def __len__(self) -> int:
        """Returns the number of records."""
        ...

    def __getitem__(self, index: int, /) -> Record:
        """Returns the record of an index in 0 .. len - 1; safe to call from several threads."""
        ...


def place(source: Source, index: int) -> str:
    """Says where a record comes from, for messages: a source's own `place(index)` if it has one.

    >>> place([{"text": "a"}], 0)
    'record 0'
    """
    own = getattr(source, "place", None)
    return own(index) if own else f"record {index}"


class Concatenated:
    """Sources one after the other; see `concatenate`."""

    def __init__(self, sources: Sequence[Source], schema: Schema | None):
        self.sources = tuple(sources)
        self.schema = schema
        self._ends = list(itertools.accumulate(map(len, sources)))

    def __len__(self) -> int:
        """Returns the number of records of all sources."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        """Returns a record."""
        source, index = self._find(index)
        return source[index]

    def place(self, index: int) -> str:
        """Says where a record comes from."""
        return place(*self._find(index))

    def _find(self, index: int) -> tuple[Source, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        n = bisect.bisect_right(self._ends, index)
        return self.sources[n], index - (self._ends[n - 1] if n else 0)


def concatenate(sources: Sequence[Source]) -> Concatenated:
    """Makes one source of several, as of the files of one data set.

    Args: `sources`: at least one; all of the same schema if they have one.
    Returns: a source with the records of the first, then of the second, ...
    Raises: ValueError for none, or for different schemas.

    >>> both = concatenate([[{"text": "a"}], [{"text": "b"}, {"text": "c"}]])
    >>> len(both), both[1]
    (3, {'text': 'b'})
    """
    if not sources:
        raise ValueError("sources is empty: pass at least one")
    schemas = {getattr(source, "schema", None) for source in sources}
    if len(schemas) > 1:
        raise ValueError(f"sources have different schemas: {', '.join(sorted(map(str, schemas)))}")
    return Concatenated(sources, schemas.pop())
