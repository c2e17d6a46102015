"""What mkdocs does with these pages beyond Markdown: lines of the source, and formulas."""

import html
import importlib
import pathlib
import re
import sys

# mkdocs loads this file by its path; its neighbours are imported by name.
sys.path.insert(0, str(pathlib.Path(__file__).parent))
mathml = importlib.import_module("mathml")
sources = importlib.import_module("sources")

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)


def on_page_markdown(markdown: str, **kwargs) -> str:
    """Puts the source's lines where a page asks for them."""
    return sources.expand(markdown)


def on_page_content(html: str, **kwargs) -> str:
    """Draws the formulas."""
    return FORMULA.sub(_formula, html)


def _formula(match: re.Match) -> str:
    display = match[2] == "["
    drawn = mathml.convert(html.unescape(match[3]), display)
    return f'<div class="formula">{drawn}</div>' if display else drawn
