"""Shows what an experiment has published: tables and pictures of `experiments/results`.

    ```results
    ppo_clipping_table/table.md
    ppo_clipping_table/scores.png: What the picture shows.
    ```

becomes the table, and the picture with that text for whoever cannot see it. What is not there is
left out: results come one by one. Where nothing is there, a sentence says so.
"""

import pathlib
import re

__all__ = ["expand", "pictures"]

RESULTS = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "results"
FENCE = re.compile(r"^```results\n(.*?)^```\n?", re.M | re.S)
NOTHING = "No results are published in this version.\n"


def expand(markdown: str, prefix: str = "", results: pathlib.Path = RESULTS) -> str:
    """Replaces all `results` blocks of a page; `prefix` leads from the page to the root."""

    def block(match: re.Match) -> str:
        parts = [_part(line, prefix, results) for line in match[1].splitlines()]
        return "\n".join(filter(None, parts)) or NOTHING

    return FENCE.sub(block, markdown)


def pictures(results: pathlib.Path = RESULTS) -> dict[str, pathlib.Path]:
    """Returns the place in the site -> the file of every picture."""
    found = sorted(results.glob("*/*.png"))
    return {f"results/{path.relative_to(results).as_posix()}": path for path in found}


def _part(line: str, prefix: str, results: pathlib.Path) -> str:
    name, _, text = line.strip().partition(": ")
    path = results / name
    if not path.exists():
        return ""
    if path.suffix == ".md":
        return path.read_text()
    return f"![{text}]({prefix}results/{name})\n"
