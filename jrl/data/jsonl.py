"""JSON lines: one object per line, read by byte offsets, never loaded whole."""

import array
import bisect
import json
import os
import pathlib
import weakref
from collections.abc import Iterator
from typing import Any

from jrl.data import schemas
from jrl.data.schemas import Columns, Record, Schema

__all__ = ["JsonLines"]


class JsonLines:
    """A file of records with random access; its schema is that of the first line.

    Opening reads the file once, line by line, and keeps 8 bytes for each: where it begins. With
    `check_all` every line is also parsed and checked then, so that a bad one is found before the
    training and not in the middle of it; otherwise when it is first read. Blank lines are skipped.

    Args: `path`; `columns`: new names of columns, or functions that make them (see
    `schemas.select`); `schema`: one of `schemas.SCHEMAS`, None to detect it; `check_all`.
    Raises: ValueError with file, line and reason for a bad line; for a file without records.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "sums.jsonl"
    >>> _ = path.write_text('{"question": "1+1", "answer": "2"}\\n')
    >>> source = JsonLines(path)
    >>> source.schema, len(source), source[0]["prompt"], source[0]["completion"]
    ('question_answer', 1, '1+1', '2')
    """

    schema: Schema

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: Columns | None = None,
        schema: Schema | None = None,
        check_all: bool = True,
    ):
        self.path = pathlib.Path(path)
        self.columns = columns
        self._starts = array.array("q")
        self._blanks: list[int] = []
        self._open()
        for number, start, line in self._lines():
            if not line.strip():
                self._blanks.append(len(self._starts))
                continue
            if not self._starts:
                self.schema = schema or self._parse(line, number, None)[1]
            if check_all or not self._starts:
                self._parse(line, number, self.schema)
            self._starts.append(start)
        if not self._starts:
            raise ValueError(f"{self.path}: the file has no records")

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self._starts)

    def __getitem__(self, index: int) -> Record:
        """Returns a record; raises ValueError with file, line and reason if the line is bad."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.path}")
        start = self._starts[index]
        end = self._starts[index + 1] if index + 1 < len(self) else self._size
        # Reads at an offset share no position: threads may do so at once.
        line = os.pread(self._file, end - start, start)
        return self._parse(line, self._number(index), self.schema)[0]

    def place(self, index: int) -> str:
        """Says where a record comes from: file and line."""
        return f"{self.path}:{self._number(index)}"

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the open file, so that the source can be sent to another process."""
        return {k: v for k, v in vars(self).items() if k not in ("_file", "_close", "_size")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Opens the file again."""
        vars(self).update(state)
        self._open()

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_RDONLY)
        self._size = os.fstat(self._file).st_size
        self._close = weakref.finalize(self, os.close, self._file)

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Yields number, offset and bytes of every line."""
        start = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield number, start, line
                start += len(line)

    def _number(self, index: int) -> int:
        return index + 1 + bisect.bisect_right(self._blanks, index)

    def _parse(self, line: bytes, number: int, schema: Schema | None) -> tuple[Record, Schema]:
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"a line must be one JSON object, got {type(record).__name__}")
            record = schemas.select(record, self.columns)
            schema = schema or schemas.detect(record)
            return schemas.check(record, schema), schema
        except ValueError as error:
            raise ValueError(f"{self.path}:{number}: {_reason(error)}") from error


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: byte {error.object[error.start]:#04x} at position {error.start + 1}"
    return str(error)
