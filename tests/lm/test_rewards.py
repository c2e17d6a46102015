"""What rewards read in texts, against Python's fractions, arithmetic by hand and known answers."""

import functools
import re
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jrl.lm import rewards

FRACTIONS = st.builds(
    lambda sign, above, below: sign * Fraction(above, below),
    st.sampled_from([1, -1]),
    st.integers(0, 10**9),
    st.integers(1, 10**4),
)
INTEGERS = st.integers(-(10**12), 10**12)
SURROUNDINGS = [
    "{}",
    "{}.",
    "The 3 answers give {}!",
    "so\n#### {}\nand 7",
    r"Thus $x = \boxed{{{}}}$ in 2 steps.",
    "<think>17</think><answer>{}</answer>",
    "**{}**",
    "x={}",
    "{} dollars",
    "({})",
]


AROUND = st.sampled_from(SURROUNDINGS)


@given(INTEGERS, AROUND, st.sampled_from(["{}", "{:,}", "${:,}", "{:,}%", "{} km/h", "€ {}"]))
def test_integers_come_back(number, around, style):
    text = around.format(style.format(number))
    assert rewards.extract_number(text) == number


@given(st.decimals(-(10**9), 10**9, allow_nan=False, places=4), AROUND)
def test_decimals_come_back(number, around):
    for style in ("{:f}", "{:,f}"):
        assert rewards.extract_number(around.format(style.format(number))) == Fraction(number)


@given(FRACTIONS, AROUND)
def test_fractions_come_back(number, around):
    above, below = number.numerator, number.denominator
    sign = "-" if above < 0 else ""
    whole, rest = divmod(abs(above), below)
    styles = [
        f"{above}/{below}",
        f"{above} / {below}",
        rf"{sign}\frac{{{abs(above)}}}{{{below}}}",
        rf"{sign}\dfrac {{{abs(above)}}}{{{below}}}",
        rf"\frac{{{above}}}{{{below}}}",
        f"{sign}{whole} {rest}/{below}",
        rf"{sign}{whole}\frac{{{rest}}}{{{below}}}",
    ]
    for style in styles:
        assert rewards.extract_number(around.format(style)) == number, style


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_of_python_come_back(number):
    assert rewards.extract_number(repr(number)) == Fraction(repr(number))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("10 - 5 = 5", 5),
        ("10-5", 5),
        ("(2)-3", 3),
        ("between 3 and -4", -4),
        ("−7 degrees", -7),
        ("-$1,234.50", Fraction("-1234.5")),
        ("$-3", -3),
        (r"\$18", 18),
        ("1,2", 2),
        ("1,2345", 2345),
        ("1,234,567.25.", Fraction("1234567.25")),
        (r"12{,}345", 12345),
        (r"12\,345", 12345),
        ("x_1 and H2O", None),
        ("25 cm^2", 25),
        ("25 cm²", 25),
        (r"25\text{ cm}^{2}", 25),
        ("version 1.2.3", Fraction("1.2")),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("2.50%", Fraction(5, 2)),
        ("1.5e3", 1500),
        ("2E-2", Fraction(1, 50)),
        (r"3 \times 10^8", 3 * 10**8),
        (r"1.5\cdot10^{-3}", Fraction(3, 2000)),
        ("2^{10}", 1024),
        ("10^-2", Fraction(1, 100)),
        (r"\frac12", Fraction(1, 2)),
        (r"-\tfrac{3}{4}", Fraction(-3, 4)),
        ("3/0", None),
        ("0^-1", None),
        ("9" * 5000, None),
        ("1e999999999", 1),
        ("99^999", None),
        ("none", None),
        ("", None),
        (r"7 \boxed{none}", None),
        ("#### 5\n#### 6\n7", 6),
        ("<answer>1</answer> <answer>2</answer> 3", 2),
        ("<answer>1</answer> <answer>2", 1),
        (r"<answer>so \boxed{8} and 9</answer> \boxed{3}", 8),
    ],
)
def test_numbers_in_text(text, number):
    assert rewards.extract_number(text) == number


def test_marked_answers_only():
    assert rewards.extract_number("it is 4", marked=True) is None
    assert rewards.extract_number("it is #### 4", marked=True) == 4


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        (r"\boxed{1}", "1"),
        (r"\boxed{\frac{1}{\sqrt{2}}}.", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{2}}", "2"),
        (r"\boxed{1} \boxed {2}", "2"),
        (r"\fbox{3}", "3"),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{{a}", None),
        (r"\boxed{}", ""),
        ("none", None),
    ],
)
def test_nested_braces(text, inner):
    assert rewards.last_boxed(text) == inner


NUMBERS = st.integers(0, 50).map(str)
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(" ".join)
        | inner.map("({})".format)
        | inner.map("-({})".format)
    ),
    max_leaves=12,
)


@given(EXPRESSIONS)
def test_expressions_have_the_value_that_python_gives_them(expression):
    exact = re.sub(r"\d+", lambda match: f"Fraction({match[0]})", expression)
    try:
        expected = eval(exact, {"Fraction": Fraction})
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="divides by zero"):
            rewards.evaluate(expression)
        return
    assert rewards.evaluate(expression) == expected
    assert rewards.evaluate(expression.replace("*", r"\times ").replace("/", "÷")) == expected


@pytest.mark.parametrize(
    "expression",
    ["", "(", ")", "()", "1 +", "* 2", "1 2", "2(3)", "(1", "1)", "(1+)", "1 ** 2", "a", "1; 2"]
    + ["__import__('os')", "1.2.3", "1e3", "0x10", "1/0", "(" * 900 + "1", "1+" * 600 + "1"]
    + ["1,000"],
)
def test_what_is_no_expression_is_an_error_of_one_line(expression):
    with pytest.raises(ValueError, match="^expression: ") as caught:
        rewards.evaluate(expression)
    assert "\n" not in str(caught.value)


def test_deep_expressions_need_no_stack():
    assert rewards.evaluate("(" * 450 + "1" + ")" * 450) == 1
    assert rewards.evaluate("-" * 999 + "1") == -1


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        ("Paris", "paris", 1),
        (" PARIS.\n", "Paris", 1),
        ("I say <answer> Paris! </answer>", "Paris", 1),
        (r"\boxed{Paris}", ["Lutetia", "Paris"], 1),
        ("London", ["Lutetia", "Paris"], 0),
        ("Paris, France", "Paris", 0),
        ("", "Paris", 0),
        ("Ｐａｒｉｓ", "Paris", 1),
        ("straße", "STRASSE", 1),
    ],
)
def test_exact_match(completion, answer, score):
    assert rewards.exact_match("", completion, answer) == score


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        ("Natalia sold 48/2 = 24 clips.\n#### 72", "48+24 = 72\n#### 72", 1),
        ("#### 1,072.00", 1072, 1),
        ("about 0.3333", Fraction(1, 3), 0),
        ("50%", "50", 1),
        ("50%", "0.5", 1),
        ("0.5", "50%", 1),
        ("0.5%", "50%", 0),
        ("50 percent", 0.5, 1),
        ("0.1", 0.1, 1),
        ("no idea", "3", 0),
    ],
)
def test_number_match(completion, answer, score):
    assert rewards.number_match("", completion, answer) == score


def test_number_match_settings():
    assert rewards.number_match("", "0.3333", Fraction(1, 3), tolerance=1e-3) == 1
    assert rewards.number_match("", "it is 3", 3, marked=True) == 0
    with pytest.raises(ValueError, match="answer: 'none' has no number"):
        rewards.number_match("", "3", "none")


@pytest.mark.parametrize(
    ("completion", "once", "all_"),
    [
        ("<answer>(6 - 1) * 5</answer>", 1, 1),
        ("<answer>5 * (6 - 1) = 25</answer>", 1, 1),
        ("Let me see.\n5 * (6 - 1)", 1, 1),
        (r"\boxed{5 \times (6 - 1)}", 1, 1),
        ("<answer>5 * 5</answer>", 0, 0),
        ("<answer>25</answer>", 0, 0),
        ("<answer>5 + 6</answer>", 0, 0),
        ("<answer>5 * (6 - 1.0)</answer>", 0, 0),
        ("<answer>eval('25')</answer>", 0, 0),
        ("<answer></answer>", 0, 0),
        ("", 0, 0),
    ],
)
def test_countdown(completion, once, all_):
    assert rewards.countdown("", completion, [1, 5, 6], 25, use_all=False) == once
    assert rewards.countdown("", completion, [1, 5, 6], 25) == all_


def test_countdown_with_numbers_left_over_or_twice():
    assert rewards.countdown("", "5 * 5", [5, 5, 1], 25, use_all=False) == 1
    assert rewards.countdown("", "5 * 5", [5, 5, 1], 25) == 0
    assert rewards.countdown("", "5 * 5", [5, 5], 25) == 1
    assert rewards.countdown("", "1 / 3 * 3", [1, 3, 3], 1) == 1


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("<think>a\nb</think>\n<answer>4</answer>\n", 1),
        ("<think></think><answer></answer>", 1),
        ("Hm. <think>a</think><answer>4</answer>", 0),
        ("<think>a</think><answer>4</answer> done", 0),
        ("<think>a</think> so <answer>4</answer>", 0),
        ("<think>a<answer>4</answer></think>", 0),
        ("<think>a</think><think>b</think><answer>4</answer>", 0),
        ("<answer>4</answer>", 0),
    ],
)
def test_think_answer(completion, score):
    assert rewards.think_answer("", completion) == score


def test_think_answer_where_the_prompt_opens_it():
    opened = functools.partial(rewards.think_answer, opened=True)
    assert opened("", "a</think><answer>4</answer>") == 1
    assert opened("", "<think>a</think><answer>4</answer>") == 0


def test_format_match():
    assert rewards.format_match("", "a\nb", pattern="a.b") == 1
    assert rewards.format_match("", "a\nb c", pattern="a.b") == 0


def test_lengths_are_of_tokens():
    penalty = functools.partial(rewards.overlong_penalty, limit=10, buffer=4)
    lengths = [0, 6, 7, 9, 10, 20]
    scores = [penalty("", "x" * 1000, completion_ids=[0] * n) for n in lengths]
    assert scores == [0, 0, -0.25, -0.75, -1, -1]
    assert rewards.target_length("", "", [1] * 7, target=10, scale=0.5) == -1.5
    with pytest.raises(ValueError, match="buffer: must be in 1 .. limit=3, got 4"):
        rewards.overlong_penalty("", "", [], limit=3, buffer=4)


def test_weighted_sums_and_columns():
    def everything(prompt, completion, **columns):
        return len(columns)

    reward = rewards.weighted({rewards.exact_match: 2, everything: 0.5, len_of_prompt: -1})
    assert reward("ab", "4", answer="4", other=None) == 2 + 1 - 2
    with pytest.raises(ValueError, match="exact_match: needs the column 'answer', there are none"):
        reward("ab", "4")
    with pytest.raises(ValueError, match="weights: empty"):
        rewards.weighted({})


def len_of_prompt(prompt, completion):
    return len(prompt)


@pytest.mark.parametrize(
    "text",
    ["1 " * 50_000, "9" * 100_000, "1," * 50_000, "\\boxed{" * 2000, " " * 100_000 + "5"]
    + ["<answer>" * 20_000, "5" + " " * 100_000, "1,111" * 20_000, "(" * 100_000, "10^" * 30_000],
)
def test_odd_texts_take_no_time(text):
    start = time.perf_counter()
    rewards.extract_number(text)
    rewards.countdown("", text, [1], 1)
    rewards.think_answer("", text)
    rewards.exact_match("", text, "5")
    assert time.perf_counter() - start < 2
