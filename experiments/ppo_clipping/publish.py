"""Copies finished results of runs to `experiments/results`, makes their tables and figures anew.

    PYTHONPATH=experiments python -m ppo_clipping.publish runs/ppo_clipping_table

Environments that are finished are enough, more may come later; without a run only the tables and
figures are made anew. The documentation shows what is there.
"""

import pathlib
import shutil
import sys
import tempfile

from jrl.run_directory import RunDirectory, UsageError
from ppo_clipping import details, table

__all__ = ["RESULTS", "WRITERS", "publish"]

RESULTS = pathlib.Path(__file__).parents[1] / "results"

WRITERS = {"ppo_clipping_table": table.write, "ppo_clipping_details": details.write}
"""Name of an experiment -> what makes its tables and figures."""

RESULT_FILES = "[A-Z]*.json"


def publish(runs: list[pathlib.Path], results: pathlib.Path = RESULTS) -> dict[str, list[str]]:
    """Returns the names of the files of each experiment that has results.

    Raises UsageError for a run of something else, ValueError for results that do not go together;
    then nothing of that experiment has changed.
    """
    sources: dict[str, list[pathlib.Path]] = {name: [] for name in WRITERS}
    for run in runs:
        name = pathlib.Path(RunDirectory(run).config["experiment"] or "").stem
        if name not in WRITERS:
            raise UsageError(f"{run} is a run of {name!r}, expected one of {', '.join(WRITERS)}")
        sources[name].append(run)
    published = {}
    for name, write in WRITERS.items():
        files = [file for place in (results / name, *sources[name]) for file in _files(place)]
        if files:
            published[name] = _replace(results / name, files, write)
    return published


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(directory.glob(RESULT_FILES))


def _replace(place: pathlib.Path, files: list[pathlib.Path], write) -> list[str]:
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        for file in files:
            shutil.copyfile(file, scratch / file.name)
        write(scratch, scratch)
        made = {file.name: file.read_bytes() for file in sorted(scratch.iterdir())}
    table.put(made, place)
    return list(made)


if __name__ == "__main__":
    try:
        for experiment, names in publish([pathlib.Path(x) for x in sys.argv[1:]]).items():
            print(f"{experiment}: {', '.join(names)}")
    except ValueError as error:
        sys.exit(f"publish: error: {error}")
