"""The recipe for GSM8K, whole, on a tiny random Qwen2 folder with data of GSM8K's schema."""

import json
import os
import subprocess
import sys

import families
import numpy as np
import pytest
import tokenizer_folders

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen2")
    special = {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 0}
    families.make("qwen2", vocab_size=352, **special).save_pretrained(folder)
    tokenizer_folders.save(folder, "qwen")
    return folder


def jrl(*arguments, cwd):
    command = [sys.executable, "-m", "jrl", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )


def test_the_whole_path(folder, tmp_path):
    questions = [
        {"question": f"What is {n} + 1?", "answer": f"It is <<{n}+1={n + 1}>>.\n#### {n + 1}"}
        for n in range(12)
    ]
    for name, records in (("train", questions[:8]), ("test", questions[8:])):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    options = {
        "task.model.folder": folder,
        "task.data.train": "train.jsonl",
        "task.data.test": "test.jsonl",
        "task.data.held-out": 4,
        "task.batches.prompts": 2,
        "task.asking.max-new-tokens": 8,
        "task.asking.sampler.slots": 8,
        "task.asking.workers": 1,
        "config.max-new-tokens": 8,
        "config.updates": 2,
        "config.microbatches": 2,
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    recipe = os.path.join(ROOT, "experiments", "lm_grpo_gsm8k.py")
    done = jrl("run", recipe, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "lm_grpo_gsm8k"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["finished"] and summary["updates"] == 2
    rows = [json.loads(line)["means"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [means for means in rows if "loss" in means]
    # The sampler and the trainer compute in bfloat16 here.
    assert all(means["sampler_gap"] < 0.1 and means["unknown_rewards"] == 0 for means in trained)
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert sum(sample["kind"] == "eval" and sample["step"] == 0 for sample in samples) == 4
    assert samples[0]["prompt"].startswith("What is ")

    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(run / "model")
    words = transformers.AutoTokenizer.from_pretrained(run / "model")
    assert words.chat_template and np.isfinite(model.lm_head.weight.detach().numpy()).all()


def test_a_missing_model_and_data_are_one_line(tmp_path):
    recipe = os.path.join(ROOT, "experiments", "lm_grpo_gsm8k.py")
    done = jrl("run", recipe, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "model.folder: Qwen2.5-0.5B-Instruct has no config.json" in done.stderr
    assert not (tmp_path / "runs").exists()
