"""Shows lines of the source in a page: found by name, so that they cannot rot.

    ```source
    jrl.losses.policy_gradient.clipped_surrogate
    from: against = advantage < 0
    to: return -ratio * advantage
    ```

becomes the lines of that function from the first one that starts with the text after `from:` to
the next one that starts with the text after `to:`, with their numbers in the file. Without `from:`
it is the body of the function below its docstring, without `to:` one statement. With `docstring:
whole` it is the docstring instead, for measured results. A module, function or line that does not
exist raises `SourceError`: the build fails, and so does a test.
"""

import ast
import pathlib
import re
import textwrap
from typing import NamedTuple

__all__ = ["Excerpt", "SourceError", "expand", "find", "requests"]

ROOT = pathlib.Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```source\n(.*?)^```\n?", re.M | re.S)


class SourceError(ValueError):
    """What a page wants to show is not in the source."""


class Excerpt(NamedTuple):
    """Lines of a file, dedented, and the number of the first one; 0 for a docstring."""

    path: str
    first: int
    text: str


def requests(markdown: str) -> list[str]:
    """Returns the contents of all `source` blocks of a page."""
    return FENCE.findall(markdown)


def expand(markdown: str) -> str:
    """Replaces all `source` blocks of a page by the lines that they name."""
    return FENCE.sub(lambda match: _block(find(match[1])), markdown)


def _block(excerpt: Excerpt) -> str:
    if not excerpt.first:
        return f'```text title="{excerpt.path}"\n{excerpt.text}\n```\n'
    title = f"{excerpt.path}, line {excerpt.first}"
    return f'```python title="{title}" linenums="{excerpt.first}"\n{excerpt.text}\n```\n'


def find(request: str) -> Excerpt:
    """Looks up what one block names."""
    name, *rest = request.strip().splitlines()
    options = dict(line.split(": ", 1) for line in rest)
    if unknown := options.keys() - {"from", "to", "docstring"}:
        raise SourceError(f"{name}: no option {', '.join(sorted(unknown))}")
    path, node = _definition(name)
    if "docstring" in options:
        return Excerpt(path.relative_to(ROOT).as_posix(), 0, _docstring(name, node))
    lines = path.read_text().splitlines()
    first, last = _range(name, node, lines, options)
    text = textwrap.dedent("\n".join(lines[first - 1 : last]))
    return Excerpt(path.relative_to(ROOT).as_posix(), first, text)


def _docstring(name: str, node) -> str:
    text = ast.get_docstring(node)
    if not text:
        raise SourceError(f"{name}: no docstring")
    return text


def _definition(name: str) -> tuple[pathlib.Path, ast.AST]:
    """Splits a dotted name into a module's file and the definition inside it."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:n])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.exists():
                node: ast.AST = ast.parse(path.read_text())
                for part in parts[n:]:
                    node = _child(node, part, name)
                return path, node
    raise SourceError(f"{name}: no such module")


def _child(node: ast.AST, part: str, name: str) -> ast.AST:
    for child in ast.walk(node):
        named = isinstance(child, ast.FunctionDef | ast.ClassDef) and child.name == part
        if named and child is not node:
            return child
    raise SourceError(f"{name}: no definition {part!r}")


def _range(name: str, node, lines: list[str], options: dict[str, str]) -> tuple[int, int]:
    body = node.body
    if ast.get_docstring(node) is not None and len(body) > 1:
        body = body[1:]
    start, end = body[0].lineno, getattr(node, "end_lineno", None) or len(lines)
    if "from" not in options:
        return start, end
    first = _line(name, lines, options["from"], start, end)
    last = _line(name, lines, options["to"], first, end) if "to" in options else first
    # A statement that goes over several lines is shown whole.
    statements = [x for x in ast.walk(node) if isinstance(x, ast.stmt) and x.lineno == last]
    simple = [x.end_lineno for x in statements if not hasattr(x, "body")]
    return first, max([last, *(x for x in simple if x is not None)])


def _line(name: str, lines: list[str], text: str, start: int, end: int) -> int:
    for number in range(start, end + 1):
        if lines[number - 1].strip().startswith(text.strip()):
            return number
    raise SourceError(f"{name}: no line that starts with {text!r}")
