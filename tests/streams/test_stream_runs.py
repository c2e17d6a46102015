"""Runs of every task: what they leave behind, and that a killed one goes on exactly."""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
import tiny

from jrl.lm import huggingface, tokenizer
from jrl.streams.experiment import _Session

HERE = pathlib.Path(__file__).parent


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def rows(directory):
    return [(row["step"], row["means"]) for row in lines(directory / "metrics.jsonl")]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_run_leaves_metrics_samples_a_summary_and_a_model(kind, tmp_path):
    experiment = tiny.experiment(kind, tmp_path)
    summary = experiment.run(tmp_path / "run", quiet=True)
    assert summary["finished"] and summary["updates"] == 6
    found = rows(tmp_path / "run")
    evaluated = [step for step, means in found if any(name.startswith("eval/") for name in means)]
    assert evaluated == [0, 3, 6]
    trained = [means for _, means in found if "loss" in means]
    assert len(trained) == 6 and all(np.isfinite(means["loss"]) for means in trained)
    config, params = huggingface.load(tmp_path / "run" / "model")
    assert config.width == 16 and ("score" in params) == (kind == "reward_model")
    assert tokenizer.load(tmp_path / "run" / "model").encode("ab") == [97, 98]
    measured = {step: means for step, means in found if "eval/reward" in means}
    if kind != "reward_model":
        samples = lines(tmp_path / "run" / "samples.jsonl")
        assert {"prompt", "answer", "reward"} <= samples[0].keys()
        for step, means in measured.items():
            here = [x["reward"] for x in samples if x["kind"] == "eval" and x["step"] == step]
            assert len(here) == 6
            np.testing.assert_allclose(np.mean(here), means["eval/reward"], rtol=1e-6)
    if kind in ("dpo", "rlhf_ppo"):
        # The reference is where training begins; sampler and trainer differ by rounding.
        assert abs(measured[0]["eval/kl"]) < 1e-4 < abs(measured[6]["eval/kl"])


SCRIPT = """
    import os, pathlib, signal, sys
    sys.path.insert(0, {here!r})
    import tiny
    from jrl.streams import experiment

    class Killed(experiment._Session):
        def advance(self):
            if self.done == {at}:
                self.checkpointer.wait()
                os.kill(os.getpid(), signal.SIGKILL)
            super().advance()

    if __name__ == "__main__":
        experiment._Session = Killed
        folder = pathlib.Path(sys.argv[1])
        tiny.experiment({kind!r}, folder).run(folder / "killed", quiet=True)
"""


@pytest.mark.parametrize("kind", ["sft", "grpo", "rlhf_ppo"])
def test_a_killed_run_goes_on_exactly_where_it_was(kind, tmp_path):
    """Killed after update 5, whose predecessor was saved: rows, samples and weights are equal."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT.format(here=str(HERE), at=5, kind=kind)))
    ended = subprocess.run([sys.executable, script, tmp_path], timeout=300)
    assert ended.returncode == -signal.SIGKILL
    assert len(rows(tmp_path / "killed")) > 4
    experiment = tiny.experiment(kind, tmp_path)
    experiment.run(tmp_path / "killed", resume=True, quiet=True)
    experiment.run(tmp_path / "whole", quiet=True)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert rows(killed) == rows(whole)
    assert lines(killed / "samples.jsonl") == lines(whole / "samples.jsonl")
    one, other = (huggingface.load(run / "model")[1] for run in (killed, whole))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_run_that_was_stopped_has_the_same_curves(tmp_path, monkeypatch):
    """Stopped between two rows: what was measured for the next one goes into the next one."""
    experiment = dataclasses.replace(tiny.experiment("sft", tmp_path), log_every=4)
    experiment.run(tmp_path / "whole", quiet=True)
    advance = _Session.advance

    def stopping(session):
        if session.done == 2:
            signal.raise_signal(signal.SIGTERM)
        advance(session)

    with monkeypatch.context() as patch:
        patch.setattr(_Session, "advance", stopping)
        summary = experiment.run(tmp_path / "stopped", quiet=True)
    assert not summary["finished"] and summary["update"] == 3
    experiment.run(tmp_path / "stopped", resume=True, quiet=True)
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")


def test_adapters_alone_are_trained_and_saved_merged(tmp_path):
    model = tiny.Model(sizes=tiny.SIZES, lora_rank=2)
    experiment = tiny.experiment("dpo", tmp_path, model=model)
    summary = experiment.run(tmp_path / "run", quiet=True)
    assert summary["finished"]
    saved = huggingface.load(tmp_path / "run" / "model")[1]
    from jrl.streams.models import open_model

    begun = open_model(model, jax.random.fold_in(jax.random.key(0), 0)).params
    np.testing.assert_array_equal(saved["embedding"], begun["embedding"])
    assert not np.array_equal(
        saved["layers"]["mlp"]["up"]["kernel"], begun["layers"]["mlp"]["up"]["kernel"]
    )


def test_chains_of_runs(tmp_path):
    """The folders that runs leave are what others begin with: SFT, reward model, PPO."""
    for kind in ("sft", "reward_model", "rlhf_ppo"):
        (tmp_path / kind).mkdir()
    tiny.experiment("sft", tmp_path / "sft", 2).run(tmp_path / "sft" / "run", quiet=True)
    model = tiny.Model(folder=str(tmp_path / "sft" / "run" / "model"))
    scored = tiny.experiment("reward_model", tmp_path / "reward_model", 2, model=model)
    scored.run(tmp_path / "reward_model" / "run", quiet=True)
    judge = tiny.Model(folder=str(tmp_path / "reward_model" / "run" / "model"))
    ppo = tiny.experiment(
        "rlhf_ppo", tmp_path / "rlhf_ppo", 2, model=model, reward_model=judge, reward=None
    )
    ppo.run(tmp_path / "rlhf_ppo" / "run", quiet=True)
    found = [m for _, m in rows(tmp_path / "rlhf_ppo" / "run") if "divergence" in m]
    assert found[0]["reward"] != 0 and found[0]["divergence"] == pytest.approx(0, abs=1e-4)


def test_a_reward_model_judges_what_grpo_samples(tmp_path):
    """Alone, and added to a function: the difference is what the function says."""
    (tmp_path / "judge").mkdir()
    scored = tiny.experiment("reward_model", tmp_path / "judge", 2)
    scored.run(tmp_path / "judge" / "run", quiet=True)
    judge = tiny.Model(folder=str(tmp_path / "judge" / "run" / "model"))
    means = {}
    for name, reward, weight in (("alone", None, 2.0), ("both", tiny.LENGTH, 2.0)):
        (tmp_path / name).mkdir()
        asking = dataclasses.replace(tiny.ASKING, reward=reward)
        experiment = tiny.experiment(
            "grpo", tmp_path / name, 1, reward_model=judge, reward_weight=weight, asking=asking
        )
        experiment.run(tmp_path / name / "run", quiet=True)
        means[name] = next(m for _, m in rows(tmp_path / name / "run") if "grad_norm" in m)
    assert means["alone"]["grad_norm"] > 0 and means["alone"]["equal_groups"] == 0
    measured = means["both"]["reward/target_length"]
    # `reward` of the row is the algorithm's, after the reward model.
    assert means["both"]["reward"] - means["alone"]["reward"] == pytest.approx(measured, abs=1e-5)
