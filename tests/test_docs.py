"""The documentation tells the truth: its code runs, its names exist, its lines are the source's.

`make docs` checks the links; here is all that needs no mkdocs.
"""

import ast
import contextlib
import importlib
import importlib.util
import io
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
RUN = [
    README,
    DOCS / "index.md",
    pytest.param(DOCS / "running.md", marks=pytest.mark.slow),
    pytest.param(DOCS / "extending.md", marks=pytest.mark.slow),
    pytest.param(DOCS / "language_models.md", marks=pytest.mark.slow),
    *(
        pytest.param(DOCS / "algorithms" / f"{name}.md", marks=pytest.mark.slow)
        for name in ("sft", "reward_model", "dpo", "grpo", "rlhf_ppo")
    ),
]

PYTHON = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
NAME = re.compile(r"\bjrl(?:\.\w+)+")
LINK = re.compile(r"\]\[(jrl[\w.]*)\]")
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.S)
NOT_NAMES = {"jrl.md"}


def page_name(path):
    return path.relative_to(ROOT).as_posix()


def load(name):
    """Imports one of the tools that make the pages, which are no package."""
    path = DOCS / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"docs_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def resolve(name):
    """Returns what a dotted name stands for; raises if there is no such thing."""
    parts = name.split(".")
    thing = importlib.import_module(parts[0])
    for n, part in enumerate(parts[1:], 2):
        if hasattr(thing, part):
            thing = getattr(thing, part)
        else:
            thing = importlib.import_module(".".join(parts[:n]))
    return thing


def prose(path):
    """Returns a page without its shell commands and addresses."""
    text = re.sub(
        r"^```(?:sh|console|source|text)\n.*?^```", "", path.read_text(), flags=re.M | re.S
    )
    return re.sub(r"https?://\S+", "", text)


@pytest.mark.parametrize("path", RUN, ids=page_name)
def test_code_blocks_run(path):
    blocks = PYTHON.findall(path.read_text())
    assert blocks
    namespace = {"__name__": "page"}
    # Classes find their module by name, as they would in a file.
    sys.modules["page"] = type(sys)("page")
    try:
        for block in blocks:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block, page_name(path), "exec"), namespace)
    finally:
        del sys.modules["page"]
    if path == README:
        probabilities = namespace["jax"].nn.softmax(namespace["state"].params)
        assert probabilities.argmax() == 2, "the README's example does not learn"


def test_the_readme_example_is_short():
    (block,) = PYTHON.findall(README.read_text())
    assert len([line for line in block.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_names_exist(path):
    for name in set(NAME.findall(prose(path))) - NOT_NAMES:
        resolve(name.removesuffix(".py"))


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_lines_are_the_sources(path):
    sources = load("sources")
    for request in sources.requests(path.read_text()):
        assert sources.find(request).text.strip()


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_formulas_can_be_drawn(path):
    mathml = load("mathml")
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", path.read_text(), flags=re.M | re.S)
    for display, inline in FORMULA.findall(text):
        assert mathml.convert(display or inline, bool(display)).startswith("<math")


def test_what_cannot_be_drawn_is_refused():
    mathml = load("mathml")
    for tex in (r"\unknown{x}", "a^", "{a", r"\frac{a}", r"\mathbb{x}", "a}"):
        with pytest.raises(mathml.MathError):
            mathml.convert(tex)


def test_what_is_not_in_the_source_is_refused():
    sources = load("sources")
    module = "jrl.losses.value"
    for request in (f"{module}.nothing", f"{module}.td_error\nfrom: nothing", "jrl.nothing.at.all"):
        with pytest.raises(sources.SourceError):
            sources.find(request)


def test_docstrings_become_markdown():
    convert = load("docstrings").markdown
    assert convert("Sums.\n\n    y = x_t * 2") == "Sums.\n\n```text\ny = x_t * 2\n```"
    assert convert("Two.\n\n>>> 1 + 1\n2").endswith("```pycon\n>>> 1 + 1\n2\n```")
    assert convert("Source: A & B.\nArgs: `x_t` [*batch] of *all* T < 3.") == (
        "**Source:** A & B.\n\n**Args:** `x_t` \\[\\*batch\\] of *all* T &lt; 3."
    )
    assert convert("Args:\n    a, b: first\n        line.\n    c: last.") == (
        "**Args:**\n\n- `a`, `b`: first line.\n- `c`: last."
    )


def test_measured_numbers_are_the_experiments():
    rows = re.findall(r"^\| \[\w+\]\((experiments/\w+\.py)\)(.*)\|$", README.read_text(), re.M)
    assert {ROOT / file for file, _ in rows} <= set((ROOT / "experiments").glob("*.py"))
    for file, text in rows:
        docstring = ast.get_docstring(ast.parse((ROOT / file).read_text())) or ""
        for number in re.findall(r"\d[\d.,e-]*\d|\d", text):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", docstring), (file, number)


def test_every_formula_of_the_course_is_linked_or_to_come():
    rows = re.findall(r"^\| (.*?) \| (.*?) \|$", (DOCS / "course.md").read_text(), re.M)
    rows = [row for row in rows if row[0] not in ("Formula", "---")]
    assert len(rows) > 80
    for formula, where in rows:
        assert LINK.search(where) or "to come: " in where, formula


def test_every_algorithm_has_a_page():
    pages = {path.stem for path in (DOCS / "algorithms").glob("*.md")}
    index = (DOCS / "algorithms" / "index.md").read_text()
    for path in (ROOT / "jrl" / "algos").glob("[a-z]*.py"):
        assert path.stem in pages, f"{path.name} has no page in docs/algorithms"
        assert f"({path.stem}.md)" in index


def test_every_public_module_is_in_the_reference():
    shown = set()
    for path in (DOCS / "reference").glob("*.md"):
        shown |= set(re.findall(r"^::: (\S+)$", path.read_text(), re.M))
    for path in (ROOT / "jrl").rglob("[a-z]*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        assert name in shown, f"docs/reference shows {name} nowhere"


def test_every_experiment_is_named_somewhere():
    text = "".join(path.read_text() for path in PAGES)
    for path in (ROOT / "experiments").glob("*.py"):
        assert f"experiments/{path.name}" in text


def test_nothing_private_is_published():
    for path in PAGES:
        text = path.read_text()
        assert not re.search(r"/(home|root|work|tmp|opt)/|localhost|index.url", text), path
