"""Interquartile means and bootstrap intervals against scipy, and a picture."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from jrl import plot
from jrl.run_directory import Recorder, RunDirectory, UsageError


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 10, 33])
def test_iqm_is_scipys_trimmed_mean(n):
    x = np.random.default_rng(n).normal(size=(n, 3))
    np.testing.assert_allclose(plot.iqm(x), scipy.stats.trim_mean(x, 0.25, axis=0), rtol=1e-12)
    np.testing.assert_allclose(plot.iqm(x.T, axis=1), plot.iqm(x))


def test_bootstrap_is_scipys_for_one_task():
    x = np.random.default_rng(0).normal(5, 2, 20)
    ours = plot.bootstrap_interval(x[:, None], resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (x,),
        lambda y, axis: scipy.stats.trim_mean(y, 0.25, axis=axis),
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    np.testing.assert_allclose(ours, theirs, atol=0.05)


def test_bootstrap_draws_within_tasks():
    scores = np.stack([np.zeros(8), np.full(8, 10.0)], axis=1)
    low, high = plot.bootstrap_interval(scores)
    assert low == high == 5, "every resample keeps each task's share"
    low, high = plot.bootstrap_interval(scores.reshape(16, 1))
    assert low < 5 < high


def test_bootstrap_is_pointwise_and_repeatable():
    x = np.random.default_rng(0).normal(size=(6, 1, 4))
    low, high = plot.bootstrap_interval(x, resamples=500)
    assert low.shape == high.shape == (4,) and (low <= high).all()
    np.testing.assert_array_equal(plot.bootstrap_interval(x, resamples=500), (low, high))


def make_run(path, settings=("default",), seeds=3, points=5):
    run = RunDirectory.create(path, {})
    recorder = Recorder(run, tensorboard=False)
    recorder.write(
        [
            {
                "step": 1000 * (p + 1),
                "setting": setting,
                "seed": seed,
                "means": {"eval/return": 10.0 * p + seed + 5 * i, "late": None if p < 2 else 1.0},
            }
            for i, setting in enumerate(settings)
            for p in range(points)
            for seed in range(seeds)
        ]
    )
    return run


def test_read_curves(tmp_path):
    run = make_run(tmp_path / "a", ("x=1", "x=2"))
    curves = plot.read_curves(run, "eval/return")
    assert list(curves) == ["x=1", "x=2"]
    steps, scores = curves["x=2"]
    assert steps.tolist() == [1000, 2000, 3000, 4000, 5000] and scores.shape == (3, 5)
    assert scores[1].tolist() == [6, 16, 26, 36, 46]
    late = plot.read_curves(run, "late")["x=1"][1]
    assert np.isnan(late[:, :2]).all() and (late[:, 2:] == 1).all()


@pytest.mark.parametrize("settings", [("default",), ("x=1", "x=2")])
def test_draws_a_png(tmp_path, settings):
    runs = [make_run(tmp_path / name, settings).path for name in "ab"]
    path = plot.curves(runs, resamples=50)
    assert path == runs[0] / "eval_return.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") and path.stat().st_size > 10_000
    other = plot.curves(runs[:1], "late", tmp_path / "deep" / "x.png", resamples=50)
    assert other.exists()


def test_the_first_run_says_what_is_drawn(tmp_path):
    run = RunDirectory.create(tmp_path / "a", {"metric": "eval/reward"})
    means = {"eval/reward": 1.0, "loss": 2.0}
    rows = [{"step": 0, "setting": "run", "seed": 0, "means": means}]
    Recorder(run, tensorboard=False).write(rows)
    assert plot.curves([run.path]) == run.path / "eval_reward.png"
    assert plot.curves([run.path], "loss") == run.path / "loss.png"
    other = make_run(tmp_path / "b").path
    assert plot.curves([other], resamples=50) == other / "eval_return.png"
    with pytest.raises(UsageError, match="b has no 'eval/reward', only eval/return, late"):
        plot.curves([run.path, other])


def test_no_display_is_looked_for(tmp_path):
    """Drawing does without pyplot, which would choose a back end for the screen."""
    run = make_run(tmp_path / "a", ("default",)).path
    code = f"""
import pathlib, sys
from jrl import plot
plot.curves([pathlib.Path({str(run)!r})], resamples=50)
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_clear_errors(tmp_path, monkeypatch):
    run = make_run(tmp_path / "a")
    with pytest.raises(UsageError, match="has no 'nope', only eval/return, late"):
        plot.curves([run.path], "nope")
    with pytest.raises(UsageError, match="is no run"):
        plot.curves([tmp_path])
    empty = RunDirectory.create(tmp_path / "empty", {})
    with pytest.raises(UsageError, match="no measurements to plot"):
        plot.curves([empty.path])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'jrl\[plots\]'"):
        plot.curves([run.path])


def test_rows_of_different_metrics_at_one_step_and_one_metric_against_another(tmp_path):
    """As language models have them: a row of training, a row of evaluation, seldom both."""
    run = RunDirectory.create(tmp_path / "a", {})
    recorder = Recorder(run, tensorboard=False)

    def row(step, **means):
        recorder.write([{"step": step, "setting": "run", "seed": 0, "means": means}])

    row(0, reward=1.0, kl=0.0)
    for step in range(1, 5):
        row(step, loss=float(step))
    row(4, reward=2.0, kl=0.5)
    steps, scores = plot.read_curves(run, "reward")["run"]
    assert steps.tolist() == [0, 4] and scores.tolist() == [[1, 2]]
    steps, scores = plot.read_curves(run, "loss")["run"]
    assert steps.tolist() == [1, 2, 3, 4] and scores.tolist() == [[1, 2, 3, 4]]
    path = plot.curves([run.path], "reward", against="kl", resamples=50)
    assert path == run.path / "reward_against_kl.png" and path.exists()
    with pytest.raises(UsageError, match="has no 'nope'"):
        plot.curves([run.path], "reward", against="nope")
