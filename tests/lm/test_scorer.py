"""Workers: order, time limits, crashes, the share of failures, and no process left behind."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
from collections import Counter
from functools import partial

import hostile_rewards as hostile
import jax.numpy as jnp
import numpy as np
import pytest

from jrl import losses
from jrl.lm import rewards
from jrl.lm.rewards import scorer as scorer_module
from jrl.lm.rewards.scorer import Scorer


def alive(pid):
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=20.0):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def scorer():
    """One crew for many tests: whatever happens in one, the next finds it in order."""
    with Scorer(hostile.behave, workers=3, timeout=0.5, max_failed=1.0) as scorer:
        yield scorer


def score(scorer, *completions, **columns):
    return scorer(["prompt"] * len(completions), completions, **columns)


def test_results_are_in_the_order_of_the_inputs():
    with Scorer(hostile.pause, workers=3) as scorer:
        numbers = np.random.default_rng(0).integers(0, 1000, 60)
        scores = score(scorer, *map(str, numbers))
    np.testing.assert_array_equal(scores.rewards, numbers.astype(np.float32))
    assert scores.valid.all() and scores.failures == []
    assert scores.metrics == {
        "reward": (numbers.sum(), 60),
        "reward/pause": (numbers.sum(), 60),
        "reward_failed/pause": (0, 60),
        "reward_timeout": (0, 60),
        "reward_exception": (0, 60),
        "reward_crash": (0, 60),
    }


KINDS = {
    "hang": "timeout",
    "sleep": "timeout",
    "deaf": "timeout",
    "regex": "timeout",
    "raise": "exception",
    "leave": "exception",
    "none": "exception",
    "nan": "exception",
    "text": "exception",
    "exit": "crash",
    "segfault": "crash",
}


def test_of_200_calls_the_bad_ones_cost_themselves_only(scorer):
    completions = [str(n) for n in range(200)]
    for n, action in enumerate(list(KINDS) * 2):
        completions[9 * n] = action
    start = time.monotonic()
    scores = score(scorer, *completions)
    took = time.monotonic() - start
    bad = [n for n, completion in enumerate(completions) if completion in KINDS]
    np.testing.assert_array_equal(np.flatnonzero(~scores.valid), bad)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(scores.rewards)), bad)
    good = [n for n in range(200) if n not in bad]
    np.testing.assert_array_equal(scores.rewards[good], np.array(good, np.float32))
    assert [failure.sample for failure in scores.failures] == bad
    for failure in scores.failures:
        assert failure.kind == KINDS[completions[failure.sample]]
        assert failure.function == "behave"
    counts = Counter(KINDS[completions[n]] for n in bad)
    for kind, count in counts.items():
        assert scores.metrics[f"reward_{kind}"] == (count, 200)
    assert scores.metrics["reward_failed/behave"] == (22, 200)
    assert scores.metrics["reward"] == (sum(good), len(good))
    # 8 calls of half a second and 12 new processes, on 3 workers.
    assert took < 20


def test_failures_say_where(scorer):
    scores = score(scorer, "hang", "regex", "raise", "exit", "segfault", "none")
    hang, regex, error, ended, segfault, none = (f.traceback for f in scores.failures)
    assert "no reward within 0.5 seconds" in hang and "in do_hang" in hang
    assert "in do_regex" in regex
    assert "KeyError: 'no such thing'" in error and "in do_raise" in error
    assert "status 3" in ended
    assert "Segmentation fault" in segfault and "in do_segfault" in segfault
    assert "a reward must be a finite number, got None" in none


def test_a_worker_that_cannot_end_itself_is_killed(scorer, monkeypatch):
    monkeypatch.setattr(scorer_module, "GRACE", 0.5)
    scores = score(scorer, "stopped", "1")
    assert [failure.kind for failure in scores.failures] == ["timeout"]
    assert scores.rewards[1] == 1


def test_what_a_reward_started_ends_with_it(scorer, tmp_path, monkeypatch):
    # The fork keeps the channel open, so that nobody hears that the worker ended.
    monkeypatch.setattr(scorer_module, "GRACE", 0.5)
    note = tmp_path / "note"
    scores = score(scorer, "children", where=[str(note)])
    assert [failure.kind for failure in scores.failures] == ["timeout"]
    pids = [int(pid) for pid in note.read_text().split()]
    wait_until(lambda: not any(map(alive, pids)))


def test_workers_are_reused_and_end_with_the_block():
    with Scorer(hostile.process, workers=2) as scorer:
        first = score(scorer, *"abcdefgh").rewards
        again = score(scorer, *"abcdefgh").rewards
        pids = {int(pid) for pid in [*first, *again]}
        assert 1 <= len(pids) <= 2 and os.getpid() not in pids
        assert all(map(alive, pids))
        killed = pids.pop()
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: not alive(killed))
        after = score(scorer, *"abcdefgh")
        # One that died between calls costs nothing.
        assert after.valid.all() and killed not in after.rewards
        pids |= {int(pid) for pid in after.rewards}
    assert not any(map(alive, pids))
    scorer.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        score(scorer, "a")


def test_workers_end_when_nobody_has_the_scorer_any_more():
    scorer = Scorer(hostile.process, workers=1)
    pid = int(score(scorer, "a").rewards[0])
    assert alive(pid)
    del scorer
    assert not alive(pid)


def test_an_interrupt_ends_the_calls_that_run():
    scorer = Scorer(hostile.behave, workers=2, timeout=1000.0)
    # Whoever runs the tests in the background of a script has them ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGINT]).start()
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt), scorer:
            score(scorer, *["sleep"] * 10)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 20


SCRIPT = """
    import sys, pathlib
    sys.path.insert(0, {here!r})
    import hostile_rewards
    from jrl.lm.rewards.scorer import Scorer

    def reward(prompt, completion, note):
        if completion == "7":
            return 7
        if completion == "children":
            return hostile_rewards.do_children(note)
        pathlib.Path(note).write_text(str(__import__("os").getpid()))
        return getattr(hostile_rewards, "do_" + completion)(note)

    {guard}
        with Scorer(reward, workers=3, timeout=1000) as scorer:
            print(scorer([""], ["7"], note=[""]).rewards, flush=True)
            if len(sys.argv) > 1:
                actions, notes = ["sleep", "regex", "children"], sys.argv[1:]
                scorer([""] * 3, actions, note=notes)
"""


def run_script(tmp_path, *args, guard='if __name__ == "__main__":', **kwargs):
    script = tmp_path / "script.py"
    here = str(pathlib.Path(__file__).parent)
    script.write_text(textwrap.dedent(SCRIPT.format(here=here, guard=guard)))
    return subprocess.Popen(
        [sys.executable, script, *args], stdout=subprocess.PIPE, text=True, **kwargs
    )


def test_functions_of_a_script(tmp_path):
    with run_script(tmp_path) as process:
        assert process.communicate(timeout=60)[0] == "[7.]\n"
    assert process.returncode == 0


def test_functions_of_an_experiment_s_file(tmp_path):
    """What `jrl run FILE` loads under a name that no import finds."""
    file = tmp_path / "mine.py"
    file.write_text(
        textwrap.dedent(
            """
            def length(prompt, completion):
                return len(completion)
            """
        )
    )
    module = types.ModuleType("loaded_from_a_file")
    module.__file__ = str(file)
    sys.modules["loaded_from_a_file"] = module
    try:
        exec(compile(file.read_text(), file, "exec"), vars(module))
        with Scorer(module.length, workers=1) as scorer:
            assert score(scorer, "four", "three").rewards.tolist() == [4.0, 5.0]
    finally:
        del sys.modules["loaded_from_a_file"]


def test_a_script_without_a_guard_is_told(tmp_path):
    with run_script(tmp_path, guard="if True:", stderr=subprocess.PIPE) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert 'under `if __name__ == "__main__":`' in errors


def test_nothing_outlives_a_parent_that_is_killed(tmp_path):
    notes = [tmp_path / name for name in "abc"]
    with run_script(tmp_path, *map(str, notes)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "[7.]\n"
        wait_until(lambda: all(note.exists() and note.read_text() for note in notes))
        pids = [int(pid) for note in notes for pid in note.read_text().split()]
        assert len(pids) == 5 and all(map(alive, pids))
        process.kill()
    wait_until(lambda: not any(map(alive, pids)))


def test_workers_import_what_they_need_only():
    jnp.zeros(1).block_until_ready()
    # Warnings are errors here, so that jax's about a fork would be one.
    with Scorer(hostile.heavy_modules, workers=1) as scorer:
        assert score(scorer, "a").rewards == 0


def test_workers_agree_on_hashes():
    found = set()
    for _ in range(2):
        with Scorer(hostile.hash_of, workers=2) as scorer:
            found |= set(score(scorer, *["text"] * 8).rewards)
    assert len(found) == 1


def test_weighted_sums_are_counted_one_by_one():
    half = partial(rewards.number_match, marked=True)
    reward = rewards.weighted({rewards.number_match: 1.0, half: 0.5, hostile.first_word: 0.1})
    with Scorer(reward, workers=2, max_failed=1.0) as scorer:
        completions = ["5 is #### 4", "4 ", "four"]
        scores = scorer(["?"] * 3, completions, answer=np.array([4, 4, 4]), ids=[7, 8, 9])
    np.testing.assert_allclose(scores.rewards, [1 + 0.5 + 0.5, 1 + 0.4, np.nan], rtol=1e-6)
    np.testing.assert_array_equal(scores.values["number_match"], [1, 1, 0])
    np.testing.assert_array_equal(scores.values["number_match_2"], [1, 0, 0])
    np.testing.assert_array_equal(scores.values["first_word"], [5, 4, np.nan])
    assert scores.metrics["reward_failed/first_word"] == (1, 3)
    assert scores.metrics["reward_failed/number_match"] == (0, 3)
    assert scores.metrics["reward/number_match_2"] == (1, 3)
    # A reward model's scores join as arrays, and what failed is masked.
    total = jnp.asarray(scores.rewards) + 0.1 * jnp.array([1.0, 2.0, 3.0])
    advantages = losses.group_advantages(total, jnp.asarray(scores.valid), kind="dr_grpo")
    np.testing.assert_allclose(advantages, [0.25, -0.25, 0.0], atol=1e-6)


def test_a_broken_reward_stops_the_run():
    with Scorer(hostile.behave, workers=2, max_failed=0.2, window=20) as scorer:
        score(scorer, "raise", "raise", "1", "2")
        score(scorer, *["1"] * 18)
        # The first two are out of the window by now.
        score(scorer, *["none"] * 4, "1")
        message = (
            r"reward 'behave' failed in 5 of its last 20 calls, more than max_failed=0.2 of 20; "
            r"the first \(exception\):\nTraceback .*KeyError: 'no such thing'"
        )
        with pytest.raises(RuntimeError, match=f"(?s){message}"):
            score(scorer, "raise", *["1"] * 5)


@pytest.mark.parametrize(
    ("reward", "settings", "message"),
    [
        (lambda p, c: 0.0, {}, "reward: .*lambda.*; a worker must import it"),
        (hostile.behave, {"workers": -1}, "workers must be at least 1, got -1"),
        (hostile.behave, {"window": 0}, "window must be at least 1"),
        (hostile.behave, {"timeout": 0.0}, "timeout must be positive"),
        (hostile.behave, {"max_failed": 1.5}, "max_failed in 0 .. 1"),
    ],
)
def test_what_cannot_work_is_refused_at_once(reward, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        Scorer(reward, **settings)
    assert "\n" not in str(caught.value)


def test_columns_are_checked(scorer):
    with pytest.raises(ValueError, match="where: 1 values for 2 prompts"):
        score(scorer, "1", "2", where=[""])
    with pytest.raises(ValueError, match="completions: 1 values for 2 prompts"):
        scorer(["a", "b"], ["1"])
    with Scorer(rewards.exact_match) as unused, pytest.raises(ValueError, match="column 'answer'"):
        score(unused, "1")
    assert score(scorer).rewards.shape == (0,)


def test_a_module_that_workers_cannot_import_is_reported(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text(
        "import os\nif 'JRL_REWARD_WORKER' in os.environ:\n    import no_such_package\n"
        "def reward(prompt, completion):\n    return 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    with Scorer(only_here.reward, workers=2) as scorer:
        message = "(?s)cannot import the reward functions.*No module named 'no_such_package'"
        with pytest.raises(RuntimeError, match=message):
            score(scorer, *"abc")
