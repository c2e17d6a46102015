"""What mkdocs does with these pages beyond Markdown: lines of the source, results, formulas."""

import html
import importlib
import pathlib
import re
import sys

# mkdocs loads this file by its path; its neighbours are imported by name.
sys.path.insert(0, str(pathlib.Path(__file__).parent))
mathml = importlib.import_module("mathml")
results = importlib.import_module("results")
sources = importlib.import_module("sources")

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)


def on_files(files, config):
    """Adds the pictures of results, which are kept beside their experiments."""
    from mkdocs.structure.files import File

    for place, path in results.pictures().items():
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page, **kwargs) -> str:
    """Puts the source's lines and the results where a page asks for them."""
    up = "../" * page.file.src_uri.count("/")
    return sources.expand(results.expand(markdown, up))


def on_page_content(html: str, **kwargs) -> str:
    """Draws the formulas."""
    return FORMULA.sub(_formula, html)


def _formula(match: re.Match) -> str:
    display = match[2] == "["
    drawn = mathml.convert(html.unescape(match[3]), display)
    return f'<div class="formula">{drawn}</div>' if display else drawn
