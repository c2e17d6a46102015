"""Tasks: answers against Python's arithmetic, frequencies against the model, and files."""

import ast
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from jrl.data.tasks import arithmetic, countdown, preferences, strings, task

TASKS = [arithmetic, countdown, preferences, strings]
ROOT = pathlib.Path(__file__).parent.parent.parent


def draw(module, config, split="train"):
    return list(task.generate(module.TASK, config, split))


def python(code):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


def test_arithmetic_is_pythons():
    config = arithmetic.Config(operations="+-*/", min_digits=1, max_digits=4, train=400)
    kinds = Counter()
    for record in draw(arithmetic, config):
        expression = record["expression"]
        value = eval(expression.replace("/", "//"))
        assert record["prompt"] == expression + "=" and record["answer"] == record["completion"]
        assert int(record["completion"]) == value
        (operation,) = (c for c in "+-*/" if c in expression)
        a, b = map(int, expression.split(operation))
        assert operation != "/" or a % b == 0
        kinds[operation, len(str(b))] += 1
    assert len(kinds) == 16 and min(kinds.values()) > 5


def test_countdown_is_solved_by_its_completion():
    config = countdown.Config(train=300, max_numbers=5, largest_target=50)
    operations = Counter()
    for record in draw(countdown, config):
        tree = ast.parse(record["completion"], mode="eval")
        used = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        assert sorted(used) == sorted(record["numbers"]) and 3 <= len(used) <= 5
        assert eval(record["completion"]) == record["target"] and 1 <= record["target"] <= 50
        joined = ",".join(map(str, record["numbers"]))
        assert record["prompt"] == f"{joined}={record['target']}:"
        operations.update(c for c in record["completion"] if c in "+-*/")
        # No parentheses that the value does not need.
        spans = [i for i, c in enumerate(record["completion"]) if c == "("]
        for i in spans:
            depth, j = 1, i
            while depth:
                j += 1
                depth += {"(": 1, ")": -1}.get(record["completion"][j], 0)
            text = record["completion"]
            bare = text[:i] + text[i + 1 : j] + text[j + 1 :]
            assert ast.dump(ast.parse(bare)) != ast.dump(ast.parse(text))
    assert min(operations[c] for c in "+-*/") > 20


def test_countdown_prompts_can_be_worded():
    config = countdown.Config(train=1, prompt="Make {target} of {numbers}. <think>")
    (record,) = draw(countdown, config)
    numbers = ",".join(map(str, record["numbers"]))
    assert record["prompt"] == f"Make {record['target']} of {numbers}. <think>"


def test_strings_are_reversed_and_sorted():
    kinds = Counter()
    for record in draw(strings, strings.Config(alphabet="dcba", train=200)):
        operation, word = record["prompt"].removesuffix("=").split()
        expected = {"reverse": list(reversed(word)), "sort": sorted(word)}[operation]
        assert list(record["completion"]) == expected and record["answer"] == record["completion"]
        kinds[operation, len(word)] += 1
    assert len(kinds) == 14


def test_preferences_follow_bradley_terry():
    config = preferences.Config(train=4000, scale=3.0)
    gaps = Counter()
    better = Counter()
    for record in draw(preferences, config):
        rewards = []
        for name in ("chosen", "rejected"):
            wanted = sum(letter in record["prompt"][:3] for letter in record[name])
            rewards.append(3.0 * wanted / 8)
            assert record[f"{name}_reward"] == pytest.approx(rewards[-1])
            assert preferences.reward(record["prompt"], record[name], config) == rewards[-1]
            assert len(record[name]) == 8 and set(record[name]) <= set("abcdefgh")
        gap = abs(rewards[0] - rewards[1])
        gaps[gap] += 1
        better[gap] += rewards[0] > rewards[1]
    assert len(gaps) == 9
    for gap, count in gaps.items():
        expected = 1 / (1 + np.exp(-gap)) if gap else 0
        deviation = np.sqrt(expected * (1 - expected) / count)
        assert abs(better[gap] / count - expected) <= 4 * deviation + 1e-12


def test_a_longer_answer_earns_no_more():
    assert preferences.reward("bad=", "b" * 8) == preferences.reward("bad=", "b" * 80) == 4.0
    assert preferences.reward("bad=", "b" * 4) == 2.0 and preferences.reward("bad=", "") == 0.0


@pytest.mark.parametrize("module", TASKS, ids=lambda m: m.__name__.split(".")[-1])
def test_splits_share_no_prompt_and_prefixes_agree(module):
    train = draw(module, module.Config(train=300, test=30))
    test = draw(module, module.Config(train=300, test=30, seed=5), "test")
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in test}
    assert draw(module, module.Config(train=40)) == train[:40]
    assert draw(module, module.Config(train=40, seed=1)) != train[:40]


@pytest.mark.parametrize("module", TASKS, ids=lambda m: m.__name__.split(".")[-1])
def test_prepared_data_are_what_was_drawn(module, tmp_path, capfd):
    config = module.Config(train=20, test=3)
    for split in ("train", "test"):
        source = module.load(config, split, tmp_path)
        assert [source[n] for n in range(len(source))] == draw(module, config, split)
    assert len(module.load(config, "train[:50%]", tmp_path)) == 10
    with pytest.raises(IndexError, match="record 20 of 20"):
        module.load(config, "train", tmp_path)[20]
    captured = capfd.readouterr()
    assert not captured.out and not captured.err
    (folder,) = tmp_path.glob("*/*/*")
    described = json.loads((folder / "dataset_info.json").read_text())["configDescription"]
    assert json.loads(described)["train"] == 20
    assert list(tmp_path.iterdir()) == [folder.parent.parent]


def test_the_examples_of_a_version_do_not_change():
    """When this fails, raise the task's version and write down the new ones."""
    first = {m.TASK.name: (m.TASK.version, draw(m, m.Config(train=1))[0]["prompt"]) for m in TASKS}
    assert first == {
        "arithmetic": ("1.0.0", "67+34="),
        "countdown": ("1.0.0", "1,16,15,17=48:"),
        "preferences": ("1.0.0", "ced="),
        "strings": ("1.0.0", "sort nhibba="),
    }


def test_the_cache_is_where_the_system_wants_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    strings.load(strings.Config(train=2, test=1))
    assert len(list((tmp_path / "jrl" / "tfds" / "strings").glob("*/1.0.0/*"))) == 4
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert task.cache_directory() == pathlib.Path.home() / ".cache" / "jrl" / "tfds"


def test_tensorflow_is_not_imported_even_where_it_is_installed(tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise RuntimeError('imported')")
    out, err = end(
        python(f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from jrl.data import loader, tokens
from jrl.data.tasks import arithmetic
source = arithmetic.load(arithmetic.Config(train=4, test=1), directory={str(tmp_path)!r})
encoder = tokens.encoder(source.schema, tokens.completion(lambda text: list(text.encode())))
batch = next(loader.Loader(source, loader.Config(batch_size=1, length=64), encoder))
assert batch["segment_ids"].max() == 4
print([name for name in sys.modules if name.split(".")[0] in ("tensorflow", "torch", "datasets")])
""")
    )
    assert (out.strip(), err) == ("[]", "")


def test_processes_that_prepare_at_once(tmp_path):
    code = f"""
from jrl.data.tasks import strings
source = strings.load(strings.Config(train=300, test=10), directory={str(tmp_path)!r})
print([source[n] for n in range(len(source))])
"""
    first, second = [end(process)[0] for process in [python(code), python(code)]]
    assert first == second and len(list(tmp_path.iterdir())) == 1


def test_who_comes_second_uses_the_data_of_the_first(tmp_path, monkeypatch):
    config, real = strings.Config(train=3, test=1), os.rename

    def rename(made, target):
        if ".preparing" not in str(target):
            shutil.copytree(made, target)
        real(made, target)

    monkeypatch.setattr(os, "rename", rename)
    source = strings.load(config, directory=tmp_path)
    assert source[0] == draw(strings, config)[0]
    assert [path.name for path in tmp_path.iterdir()] == ["strings"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_who_is_interrupted_leaves_nothing(tmp_path, monkeypatch, error):
    real = os.rename

    def rename(made, target):
        if ".preparing" not in str(target):
            raise error
        real(made, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(error):
        strings.load(strings.Config(train=3, test=1), directory=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: arithmetic.Config(operations="%"), "config.operations must be some of"),
        (lambda: arithmetic.Config(min_digits=3), "min_digits and max_digits must be 1 <= min"),
        (lambda: countdown.Config(operations=""), "config.operations must be some of"),
        (lambda: countdown.Config(min_numbers=1), "min_numbers and max_numbers must be 2 <= min"),
        (lambda: countdown.Config(prompt="{numbers}"), "config.prompt must have"),
        (lambda: strings.Config(operations=("shout",)), "some of reverse, sort"),
        (lambda: strings.Config(alphabet="a b"), "config.alphabet must be letters"),
        (lambda: strings.Config(min_length=9), "min_length and max_length must be 1 <= min"),
        (lambda: preferences.Config(alphabet="aa"), "config.alphabet must be different letters"),
        (lambda: preferences.Config(prompt_length=8), "config.prompt_length must be from 1 to 7"),
        (lambda: strings.load(strings.Config(train=0)), "config.train must be at least 1"),
        (
            lambda: draw(countdown, countdown.Config(operations="+", largest_target=2)),
            "none of 10000 random",
        ),
        (lambda: draw(strings, strings.Config(alphabet="a", max_length=2), "test"), "more prompts"),
    ],
)
def test_impossible_configurations_are_refused(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()
