"""Turns the TeX that these pages use into MathML, which browsers draw without any script.

    convert(r"\frac{a}{b}") -> "<math ...><mfrac><mi>a</mi><mi>b</mi></mfrac></math>"

A converter of our own for two reasons: the pages must build and render without a network, and
shipping a JavaScript renderer with its fonts would outweigh the rest of the documentation. It
knows a small subset and raises `MathError` for everything else, so that a formula is either drawn
as meant or stops the build.
"""

import html
import re

__all__ = ["MathError", "convert"]

TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\d+(?:\.\d+)?|\s+|.", re.S)

GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ϵ", "eta": "η", "theta": "θ",
    "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ",
    "phi": "ϕ", "omega": "ω", "Delta": "Δ", "Gamma": "Γ", "Theta": "Θ", "Sigma": "Σ", "Omega": "Ω",
}  # fmt: skip
OPERATORS = {
    "cdot": "⋅", "times": "×", "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠",
    "approx": "≈", "sim": "∼", "in": "∈", "to": "→", "rightarrow": "→", "leftarrow": "←",
    "succ": "≻", "nabla": "∇", "partial": "∂", "mid": "|", "cdots": "⋯", "dots": "…", "ldots": "…",
    "Vert": "‖", "pm": "±",
    "{": "{", "}": "}",
}  # fmt: skip
IDENTIFIERS = {"infty": "∞", "ell": "ℓ", "top": "⊤"}
FUNCTIONS = {"log", "exp", "sin", "cos", "tanh"}
LIMITS = {"max", "min", "argmax", "argmin"}
BIG = {"sum": "∑", "prod": "∏"}
ACCENTS = {"hat": "^", "bar": "¯", "tilde": "~"}
SPACES = {",": "0.17em", ";": "0.28em", " ": "0.28em", "quad": "1em", "qquad": "2em", "!": "0"}
THIN = '<mspace width="0.17em"/>'
SCRIPT = dict(zip("BEFHILMR", "ℬℰℱℋℐℒℳℛ", strict=True))
BLACKBOARD = dict(zip("CHNPQRZ", "ℂℍℕℙℚℝℤ", strict=True))


class MathError(ValueError):
    """The formula uses something that this converter does not know."""


def convert(tex: str, display: bool = False) -> str:
    """Returns the `<math>` element of a formula; raises `MathError` with the formula in it."""
    tokens = TOKEN.findall(tex.strip())
    try:
        body, rest = _row(tokens, 0, None)
    except (MathError, IndexError) as error:
        raise MathError(f"{error or 'unfinished formula'} in {tex!r}") from None
    if rest != len(tokens):
        raise MathError(f"unexpected {tokens[rest]!r} in {tex!r}")
    mode = ' display="block"' if display else ""
    label = html.escape(" ".join(tex.split()), quote=True)
    return f'<math{mode} aria-label="{label}"><mrow>{body}</mrow></math>'


def _row(tokens: list[str], i: int, stop: str | None) -> tuple[str, int]:
    """Reads atoms with their scripts until `stop`, which it leaves, or to the end."""
    parts = []
    while i < len(tokens) and tokens[i] != stop and tokens[i] not in ("\\end", "&", "\\\\"):
        if tokens[i].isspace():
            i += 1
            continue
        command = tokens[i].removeprefix("\\")
        base, i = _atom(tokens, i)
        under, over, i = _scripts(tokens, i)
        named = command in FUNCTIONS or command in LIMITS
        if named and parts and not parts[-1].endswith("</mo>"):
            parts.append(THIN)
        parts.append(_attach(base, under, over, command in BIG or command in LIMITS))
        if named:
            parts.append(THIN)
    return "".join(parts), i


def _atom(tokens: list[str], i: int) -> tuple[str, int]:
    while tokens[i].isspace():
        i += 1
    token, i = tokens[i], i + 1
    if token == "{":
        body, i = _row(tokens, i, "}")
        if i == len(tokens):
            raise MathError("a brace is not closed")
        return f"<mrow>{body}</mrow>", i + 1
    if token[0].isdigit():
        return f"<mn>{token}</mn>", i
    if token.isalpha():
        return f"<mi>{token}</mi>", i
    if not token.startswith("\\"):
        if token in "}^_$#%&":
            raise MathError(f"unexpected {token!r}")
        text = {"-": "−", "*": "∗", "<": "&lt;", ">": "&gt;"}.get(token, token)
        fence = ' stretchy="false"' if token in "()[]|" else ""
        return f"<mo{fence}>{text}</mo>", i
    return _command(token[1:], tokens, i)


def _command(name: str, tokens: list[str], i: int) -> tuple[str, int]:
    if name in GREEK:
        return f"<mi>{GREEK[name]}</mi>", i
    if name in IDENTIFIERS:
        return f"<mi>{IDENTIFIERS[name]}</mi>", i
    if name in OPERATORS:
        fence = ' stretchy="false"' if name in ("{", "}", "mid", "Vert") else ""
        return f"<mo{fence}>{OPERATORS[name]}</mo>", i
    if name in FUNCTIONS or name in LIMITS:
        return f'<mi mathvariant="normal">{name}</mi>', i
    if name in BIG:
        return f'<mo largeop="true" movablelimits="true">{BIG[name]}</mo>', i
    if name in SPACES:
        return f'<mspace width="{SPACES[name]}"/>', i
    if name in ("frac", "tfrac"):
        top, i = _atom(tokens, i)
        bottom, i = _atom(tokens, i)
        return f"<mfrac>{top}{bottom}</mfrac>", i
    if name == "sqrt":
        body, i = _atom(tokens, i)
        return f"<msqrt>{body}</msqrt>", i
    if name in ACCENTS:
        body, i = _atom(tokens, i)
        return f'<mover accent="true">{body}<mo stretchy="false">{ACCENTS[name]}</mo></mover>', i
    if name in ("text", "operatorname", "mathbf", "mathbb", "mathcal"):
        return _letters(name, *_text(tokens, i))
    if name == "left":
        return _fenced(tokens, i)
    if name == "begin":
        return _environment(tokens, i)
    raise MathError(f"unknown command \\{name}")


def _letters(name: str, text: str, i: int) -> tuple[str, int]:
    if name == "text":
        return f"<mtext>{html.escape(text)}</mtext>", i
    if name == "operatorname":
        return f'<mi mathvariant="normal">{html.escape(text)}</mi>', i
    if name == "mathbf" and text.isdecimal():
        return f"<mn>{''.join(chr(0x1D7CE + int(c)) for c in text)}</mn>", i
    if not (text.isascii() and text.isalpha()):
        raise MathError(f"\\{name} takes letters, got {text!r}")
    if name == "mathbf":
        return f"<mi>{_shift(text, 0x1D400, 0x1D41A)}</mi>", i
    if not text.isupper():
        raise MathError(f"\\{name} takes capitals, got {text!r}")
    start, known = (0x1D49C, SCRIPT) if name == "mathcal" else (0x1D538, BLACKBOARD)
    return f"<mi>{''.join(known.get(c, _shift(c, start, 0)) for c in text)}</mi>", i


def _shift(text: str, upper: int, lower: int) -> str:
    return "".join(
        chr(upper + ord(c) - ord("A")) if c.isupper() else chr(lower + ord(c) - ord("a"))
        for c in text
    )


def _text(tokens: list[str], i: int) -> tuple[str, int]:
    """Reads the raw characters of a group."""
    if tokens[i] != "{":
        raise MathError("expected a group in braces")
    end = tokens.index("}", i)
    return "".join(tokens[i + 1 : end]).replace("\\ ", " "), end + 1


def _fenced(tokens: list[str], i: int) -> tuple[str, int]:
    opening, i = tokens[i], i + 1
    body, i = _row(tokens, i, "\\right")
    closing, i = tokens[i + 1], i + 2

    def fence(token):
        text = token.removeprefix("\\")
        return "" if text == "." else f'<mo stretchy="true">{html.escape(text)}</mo>'

    return f"<mrow>{fence(opening)}{body}{fence(closing)}</mrow>", i


def _environment(tokens: list[str], i: int) -> tuple[str, int]:
    """Reads `cases` and `aligned`: rows parted by a double backslash, cells by an ampersand."""
    name, i = _text(tokens, i)
    if name not in ("cases", "aligned"):
        raise MathError(f"unknown environment {name!r}")
    rows, cells = [], []
    while True:
        cell, i = _row(tokens, i, "\\end")
        cells.append(f"<mtd>{cell}</mtd>")
        if tokens[i] != "&":
            rows.append(f"<mtr>{''.join(cells)}</mtr>")
            cells = []
        if tokens[i] == "\\end":
            break
        i += 1
    _, i = _text(tokens, i + 1)
    brace = '<mo stretchy="true">{</mo>' if name == "cases" else ""
    return f'<mrow>{brace}<mtable class="{name}">{"".join(rows)}</mtable></mrow>', i


def _scripts(tokens: list[str], i: int) -> tuple[str, str, int]:
    under = over = ""
    while i < len(tokens):
        if tokens[i].isspace():
            i += 1
        elif tokens[i] == "_" and not under:
            under, i = _atom(tokens, i + 1)
        elif tokens[i] == "^" and not over:
            over, i = _atom(tokens, i + 1)
        elif tokens[i] == "'":
            over, i = f"<mo>′</mo>{over}", i + 1
        else:
            break
    return under, f"<mrow>{over}</mrow>" if over.count("<") > 2 else over, i


def _attach(base: str, under: str, over: str, limits: bool) -> str:
    below, above = ("under", "over") if limits else ("sub", "sup")
    if under and over:
        return f"<m{below}{above}>{base}{under}{over}</m{below}{above}>"
    if under:
        return f"<m{below}>{base}{under}</m{below}>"
    if over:
        return f"<m{above}>{base}{over}</m{above}>"
    return base
