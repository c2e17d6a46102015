"""Makes Markdown of our docstrings for mkdocstrings.

They are written to be read in the source: equations are indented, `Source:`, `Args:` and the like
begin a line, examples begin with `>>>`, shapes are in square brackets. Markdown would read `[*b]`
as the start of emphasis and `>>>` as a quotation, so each kind of paragraph is turned into what it
means: a code block, a definition, an example, or text with its special characters escaped.
"""

import re
import textwrap
from typing import Any

from griffe import Extension, Object

__all__ = ["Docstrings", "markdown"]

HEAD = re.compile(r"^(Source|Args|Returns|Raises|Deviations?|Conventions?):(?= |$)")
INLINE = re.compile(r"(?<=[.;] )(Returns|Raises|Deviation|Args):(?= )")
TERM = re.compile(r"^(\w[\w*, ]*): ")
KEEP = re.compile(r"(`[^`]*`|https?://\S+|(?<![\w*\[])\*\w[\w ]*\w\*(?!\w))")
SPECIAL = re.compile(r"([\\*_\[\]>$#])")


class Docstrings(Extension):
    """Rewrites every docstring while the source is loaded."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called by griffe for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """Turns one docstring into Markdown.

    Everything between the docstring's blank lines is one block: indented, an example, a table or
    a list, or a paragraph that may begin a section.
    """
    blocks = [_block(block) for block in re.split(r"\n\s*\n", text.strip("\n"))]
    return "\n\n".join(block for block in blocks if block)


def _block(block: str) -> str:
    lines = block.splitlines()
    if lines[0].startswith(">>>"):
        return "```pycon\n" + block + "\n```"
    if all(line.startswith("    ") for line in lines):
        return "```text\n" + textwrap.dedent(block) + "\n```"
    if all(line.startswith("|") for line in lines):
        return block
    sections: list[list[str]] = [[]]
    for line in lines:
        if HEAD.match(line) or line.startswith("- "):
            sections.append([])
        sections[-1].append(line)
    return "\n\n".join(_section(section) for section in sections if section)


def _section(lines: list[str]) -> str:
    if lines[0].startswith("- "):
        return "- " + _escape(" ".join(line.strip() for line in lines)[2:])
    match = HEAD.match(lines[0])
    if not match:
        return _labels(_escape(" ".join(line.strip() for line in lines)))
    head, rest = match[1], [lines[0][match.end() :].strip(), *lines[1:]]
    if rest[0] or len(rest) < 2:
        text = " ".join(line.strip() for line in rest)
        return f"**{head}:** " + _labels(_escape(text))
    return f"**{head}:**\n\n" + _items(textwrap.dedent("\n".join(rest[1:])).splitlines())


def _items(lines: list[str]) -> str:
    """Turns `name: text` lines, continued on deeper ones, into a list."""
    items: list[str] = []
    for line in lines:
        if items and line.startswith(" "):
            items[-1] += " " + line.strip()
        else:
            items.append(line.strip())
    shown = []
    for item in items:
        match = TERM.match(item)
        if match:
            names = ", ".join(f"`{name.strip()}`" for name in match[1].split(","))
            item = f"{names}: {_escape(item[match.end() :])}"
        else:
            item = _escape(item)
        shown.append(f"- {item}")
    return "\n".join(shown)


def _labels(text: str) -> str:
    return INLINE.sub(lambda match: f"\n\n**{match[1]}:**", text)


def _escape(text: str) -> str:
    """Escapes what Markdown would interpret, outside code, addresses and *stressed* words."""
    parts = KEEP.split(text)
    for n in range(0, len(parts), 2):
        parts[n] = SPECIAL.sub(r"\\\1", parts[n]).replace("<", "&lt;")
    return "".join(parts)
