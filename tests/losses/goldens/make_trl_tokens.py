"""Writes trl_tokens.json: the numbers of TRL for policy losses on tokens, and for long responses.

TRL is no dependency of jrl. In a virtual environment of its own:

    pip install torch==2.13.0 && pip install trl
    python tests/losses/goldens/make_trl_tokens.py tests/losses/goldens/trl_tokens.json

`GRPOTrainer._compute_loss` runs on a stub in place of the trainer; no model, no download.
"""

import collections
import importlib.metadata
import json
import platform
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from trl.rewards import get_soft_overlong_punishment
from trl.trainer.grpo_trainer import GRPOTrainer

rng = np.random.default_rng(2)
ROWS, TOKENS, MAX_LENGTH = 8, 6, 10


def tensor(shape, low, high):
    """Draws float32 numbers with four decimals, so that the JSON holds them exactly enough."""
    return torch.tensor(rng.uniform(low, high, shape).round(4), dtype=torch.float32)


def batch():
    """Ragged rows with a hole (a tool's tokens), and one of which nothing is kept."""
    lengths = torch.tensor([6, 3, 1, 5, 0, 6, 2, 4])
    completion = (torch.arange(TOKENS) < lengths[:, None]).long()
    tool = torch.ones_like(completion)
    tool[0, 2:4] = tool[3, 0] = 0
    log_probs = tensor((ROWS, TOKENS), -3, 0)
    return {
        "log_probs": log_probs,
        "old_log_probs": log_probs + tensor((ROWS, TOKENS), -0.6, 0.6),
        "ref_log_probs": log_probs + tensor((ROWS, TOKENS), -0.6, 0.6),
        "advantages": tensor(ROWS, -2, 2),
        "completion": completion,
        "tool": tool,
    }


def loss(columns, loss_type, level="token", low=0.2, high=0.2, delta=None, beta=0.0):
    """The loss of a batch, with its gradient in the log-probabilities."""
    log_probs = columns["log_probs"].clone().requires_grad_()
    trainer = mock.Mock(spec=[])
    trainer.model = SimpleNamespace(training=True)
    trainer.accelerator = SimpleNamespace(
        num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x
    )
    trainer.aux_loss_enabled = trainer.use_vllm = trainer._entropy_bonus_enabled = False
    trainer.top_entropy_quantile, trainer.off_policy_mask_threshold = 1.0, None
    trainer.loss_type, trainer.importance_sampling_level = loss_type, level
    trainer.epsilon_low, trainer.epsilon_high, trainer.beta = low, high, beta
    trainer.max_completion_length = MAX_LENGTH
    trainer.current_gradient_accumulation_steps = 1
    trainer.args = SimpleNamespace(
        delta=delta, use_bias_correction_kl=False, steps_per_generation=1
    )
    trainer._metrics = collections.defaultdict(lambda: collections.defaultdict(list))
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (
        log_probs,
        torch.zeros_like(log_probs),
        None,
    )
    ids = torch.zeros(ROWS, TOKENS).long()
    mask = columns["completion"] * columns["tool"]
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": torch.ones(ROWS, 1).long(),
        "completion_ids": ids,
        "completion_mask": columns["completion"],
        "tool_mask": columns["tool"],
        "advantages": columns["advantages"],
        "old_per_token_logps": columns["old_log_probs"],
        "ref_per_token_logps": columns["ref_log_probs"],
        "num_items_in_batch": mask.sum(),
    }
    value = GRPOTrainer._compute_loss(trainer, None, inputs)
    (grad,) = torch.autograd.grad(value, [log_probs])
    inputs = {k: v.tolist() for k, v in columns.items() if k not in ("completion", "tool")}
    inputs |= {"mask": mask.bool().tolist(), "max_length": MAX_LENGTH}
    return {"inputs": inputs, "outputs": {"loss": value.item(), "grad": grad.tolist()}}


def overlong(max_length, buffer):
    """The penalty of responses of 0 to 12 tokens."""
    penalty = get_soft_overlong_punishment(max_length, buffer)
    lengths = list(range(13))
    return {
        "inputs": {"lengths": lengths, "max_length": max_length, "buffer": buffer},
        "outputs": {"penalty": [float(x) for x in penalty([[1] * n for n in lengths])]},
    }


def main(path):
    """Writes all cases."""
    columns = batch()
    cases = {name: loss(columns, name) for name in ("grpo", "bnpo", "dr_grpo", "dapo")}
    cases["dapo_clip_higher"] = loss(columns, "dapo", high=0.28)
    cases["dapo_two_sided"] = loss(columns, "dapo", delta=1.4)
    cases["dapo_kl"] = loss(columns, "dapo", beta=0.5)
    cases["gspo"] = loss(columns, "grpo", "sequence", 0.1, 0.15)
    cases["gspo_dapo"] = loss(columns, "dapo", "sequence", 0.1, 0.15)
    cases["cispo"] = loss(columns, "cispo", high=1.3)
    cases["overlong"] = overlong(10, 4)
    versions = {name: importlib.metadata.version(name) for name in ("trl", "torch", "numpy")}
    record = {"versions": {**versions, "python": platform.python_version()}, "cases": cases}
    with open(path, "w") as file:
        json.dump(record, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
