r"""What a completion says: its final answer, a number, the value of an expression.

Numbers are exact fractions. Nothing is executed: `evaluate` reads sums and products only.
"""

import operator
import re
from fractions import Fraction

__all__ = [
    "evaluate",
    "extract_number",
    "final_answer",
    "integers",
    "last_boxed",
    "read_number",
]

LONGEST = 1000
"""Characters of a number or an expression: no answer is longer, and Python's limit is 4300."""

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_EXPONENT = r"\s*\^\s*\{{?\s*(?P<{}>[+-]?[0-9]{{1,3}})(?![0-9])\s*\}}?"
_NUMBER = re.compile(
    # Not within a word or a version, no index and no exponent.
    rf"(?<![\w.^])(?<!\^\{{)(?<!_\{{)"
    # After what ends a term, a sign is an operator.
    rf"(?P<sign>(?<![)\]}}])[+-])?"
    rf"(?:(?P<whole>[0-9]+)\s+(?=[0-9]+\s*/))?"
    rf"(?P<number>{_DIGITS})"
    rf"(?:[eE](?P<e>[+-]?[0-9]{{1,3}})(?!\w))?"
    rf"(?:\s*/\s*(?P<below>{_DIGITS}))?"
    rf"(?:\s*(?:\\times|\\cdot|[×·*x])\s*10{_EXPONENT.format('ten')})?"
    rf"(?:{_EXPONENT.format('power')})?"
)
_FRACTION = re.compile(
    rf"\\[dt]?frac\s*(?:\{{\s*([+-]?(?:{_DIGITS}))\s*\}}\s*\{{\s*({_DIGITS})\s*\}}"
    r"|\s*([0-9])\s*([0-9]))"
)
_TOKEN = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]+)?)|([-+*/()]))\s*")
_OPERATORS = {
    "+": (1, operator.add),
    "-": (1, operator.sub),
    "*": (2, operator.mul),
    "/": (2, operator.truediv),
}
_SPELLINGS = {"−": "-", "×": "*", "·": "*", "÷": "/", r"\times": "*", r"\cdot": "*", r"\div": "/"}


def last_boxed(text: str) -> str | None:
    r"""Returns what stands in the last complete `\boxed{...}`, braces within it matched.

    >>> last_boxed(r"so \boxed{1}, no: \boxed{\frac{1}{2}} and \boxed{3")
    '\\frac{1}{2}'
    """
    found, last = None, -1
    opened: list[int] = []
    for match in re.finditer(r"(\\(?:boxed|fbox)\s*\{)|\\.|\{|\}", text, re.S):
        if match[0] == "}":
            start = opened.pop() if opened else -1
            if start > last:
                found, last = text[start : match.start()], start
        elif match[0].endswith("{") and match[0] != "\\{":
            opened.append(match.end() if match[1] else -1)
    return found


def final_answer(text: str) -> str | None:
    r"""Returns the part of a text that is marked as its answer, None where nothing is.

    What stands in the last `<answer>` tag; within that, or without one, in the last `\boxed{}`;
    within that, or without one, the rest of the line behind the last `####` (GSM8K's mark).

    >>> final_answer("2 + 2 = 4\n#### 4"), final_answer("<answer> \\boxed{5} </answer>")
    ('4', '5')
    """
    found = None
    for find in (_last_tag, last_boxed, _behind_hashes):
        part = find(text)
        if part is not None:
            found = text = part
    return None if found is None else found.strip()


def extract_number(text: str, marked: bool = False) -> Fraction | None:
    r"""Returns the last number of the final answer, or of the whole text where none is marked.

    It reads thousands' commas, signs, decimals, fractions (`3/4`, `\frac{3}{4}`, `2 1/2`), powers
    of ten (`1.5e3`, `1.5 \times 10^3`) and powers. Currencies, units and the percent sign are left
    out: `50%` is 50, as in GSM8K's answers.
    Args: `marked`, whether nothing but a marked answer counts. Returns: None without a number.
    Deviation: it is no computer algebra; of `\sqrt{2}` it reads 2.

    >>> extract_number(r"That makes \$1,234.50 in all."), extract_number("#### -3/4")
    (Fraction(2469, 2), Fraction(-3, 4))
    """
    return read_number(text, marked)[0]


def read_number(text: str, marked: bool = False) -> tuple[Fraction | None, bool]:
    """Returns what `extract_number` does, and whether a percent sign follows it.

    >>> read_number("about 12.5 %")
    (Fraction(25, 2), True)
    """
    answer = final_answer(text)
    if answer is None:
        if marked:
            return None, False
        answer = text
    answer = _plain(answer)
    for match in reversed(list(_NUMBER.finditer(answer))):
        value = _value(match)
        if value is not None:
            return value, bool(re.match(r"\s*(%|per ?cent\b)", answer[match.end() :]))
    return None, False


def evaluate(expression: str) -> Fraction:
    r"""Computes an expression of numbers, `+ - * /`, signs and parentheses, exactly.

    `×`, `÷` and their LaTeX names are read too. Nothing is passed to Python's `eval`.
    Raises: ValueError, in one line, for anything else, a division by zero and what is too long.

    >>> evaluate("(1 + 2) * -3 / 4")
    Fraction(-9, 4)
    """
    values: list[Fraction] = []
    waiting: list[str] = []

    def reduce(priority):
        while waiting and waiting[-1] != "(" and _priority(waiting[-1]) >= priority:
            sign = waiting.pop()
            right = values.pop()
            if sign == "negative":
                values.append(-right)
            elif sign == "/" and right == 0:
                raise ValueError(f"expression: {expression!r} divides by zero")
            else:
                values.append(_OPERATORS[sign][1](values.pop(), right))

    after_value = False
    for token in _tokens(expression):
        if after_value and (token == "(" or token[0].isdigit()):
            raise _misplaced(token, expression)
        if token[0].isdigit():
            values.append(Fraction(token))
            after_value = True
        elif token == "(":
            waiting.append(token)
        elif token == ")":
            if not after_value:
                raise _misplaced(token, expression)
            reduce(0)
            if not waiting:
                raise _misplaced(token, expression)
            waiting.pop()
        elif after_value:
            reduce(_priority(token))
            waiting.append(token)
            after_value = False
        elif token == "-":
            waiting.append("negative")
        elif token != "+":
            raise _misplaced(token, expression)
    if not after_value:
        raise _misplaced("its end", expression)
    reduce(0)
    if waiting:
        raise _misplaced("(", expression)
    return values[0]


def integers(expression: str) -> list[int]:
    """Returns the numbers that an expression is made of; raises ValueError for decimals.

    >>> integers("(25 - 3) * 25")
    [25, 3, 25]
    """
    return [int(token) for token in _tokens(expression) if token[0].isdigit()]


def _last_tag(text: str) -> str | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end] if start >= 0 else None


def _behind_hashes(text: str) -> str | None:
    _, mark, answer = text.rpartition("####")
    return answer.lstrip().partition("\n")[0] if mark else None


def _plain(text: str) -> str:
    """Replaces spellings of LaTeX and of typography by those that `_NUMBER` reads."""
    text = text.replace("−", "-").replace("{,}", ",").replace("\\%", "%").replace("\\$", "$")
    text = re.sub(r"(?<=[0-9])\\[,!;: ](?=[0-9])", "", text)
    text = re.sub(r"([+-])\s?[$€£¥]", r"\1", text)
    text = re.sub(r"[$€£¥]", " ", text)

    def fraction(match):
        above, below = match[1] or match[3], match[2] or match[4]
        # Behind a sign it belongs to that, behind a number it is the rest of a mixed one.
        signed = match.string[max(match.start() - 1, 0)] in "+-"
        return f"{above}/{below}" if signed else f" {above}/{below}"

    return _FRACTION.sub(fraction, text)


def _value(match: re.Match) -> Fraction | None:
    """Returns the number that was matched, None for one that is none."""
    if len(match[0]) > LONGEST:
        return None
    value = Fraction(match["number"].replace(",", "")) * Fraction(10) ** int(match["e"] or 0)
    if match["below"]:
        below = Fraction(match["below"].replace(",", ""))
        if below == 0:
            return None
        value /= below
    if match["whole"] and value < 1:
        value += int(match["whole"])
    if match["power"]:
        power = int(match["power"])
        if abs(power) * len(match["number"]) > LONGEST or (value == 0 and power < 0):
            return None
        value **= power
    value *= Fraction(10) ** int(match["ten"] or 0)
    return -value if match["sign"] == "-" else value


def _tokens(expression: str) -> list[str]:
    for spelling, sign in _SPELLINGS.items():
        expression = expression.replace(spelling, sign)
    if len(expression) > LONGEST:
        raise ValueError(f"expression: more than {LONGEST} characters")
    tokens, place = [], 0
    while place < len(expression):
        match = _TOKEN.match(expression, place)
        if match is None:
            raise _misplaced(expression[place:].strip()[:1], expression)
        tokens.append(match[1] or match[2])
        place = match.end()
    return tokens


def _priority(sign: str) -> int:
    return _OPERATORS[sign][0] if sign in _OPERATORS else 3


def _misplaced(token: str, expression: str) -> ValueError:
    return ValueError(f"expression: {expression!r} cannot be read at {token!r}")
