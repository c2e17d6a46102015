"""The data that runs read: files of JSON lines, or what an experiment opens itself."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import tyro

from jrl.data import jsonl
from jrl.data.schemas import Columns, Record

__all__ = ["Data"]


def _nothing(split: str) -> Any:
    """What is opened where an experiment names nothing."""
    raise ValueError(f"data.{split}: missing, name a file of JSON lines")


@dataclasses.dataclass(frozen=True)
class Data:
    """Where records come from, and how many are held out."""

    open: tyro.conf.Suppress[Callable[[str], Any]] = _nothing
    """Opens "train" or "test" where no file is named."""
    train: str | None = None
    """JSON lines to train on, instead of the experiment's own data."""
    test: str | None = None
    """JSON lines that are held out, instead of the experiment's own."""
    held_out: int = 256
    """The most held-out records that an evaluation takes."""
    columns: tyro.conf.Suppress[Columns | None] = None
    """New name -> old name or function of the record, for files."""

    def validate(self) -> None:
        """Raises ValueError with one line that names the field and the fix."""
        if self.held_out < 1:
            raise ValueError(f"data.held_out must be at least 1, got {self.held_out}")
        for name in ("train", "test"):
            path = getattr(self, name)
            if path is not None and not pathlib.Path(path).is_file():
                raise ValueError(f"data.{name}: {path} is no file")
            self.source(name)

    def source(self, split: str) -> Any:
        """Opens a split: "train" or "test". Raises ValueError if it has no records."""
        path = getattr(self, split)
        try:
            source = self.open(split) if path is None else jsonl.JsonLines(path, self.columns)
        except FileNotFoundError as error:
            raise ValueError(f"data.{split}: {error}; or name a file of JSON lines") from error
        if not len(source):
            raise ValueError(f"data.{split}: there are no records, name a file that has some")
        return source

    def held_out_records(self) -> list[Record]:
        """Returns the first records of the held-out split."""
        source = self.source("test")
        return [source[i] for i in range(min(len(source), self.held_out))]
