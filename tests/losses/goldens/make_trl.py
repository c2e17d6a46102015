"""Writes trl.json: the numbers of TRL for DPO, its variants, and reward models.

TRL is no dependency of jrl. In a virtual environment of its own:

    pip install torch==2.13.0 && pip install trl
    python tests/losses/goldens/make_trl.py tests/losses/goldens/trl.json

The trainers' loss functions run on a stub in place of the trainer; no model, no download. They
return means over pairs, so each pair is a batch of its own.
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
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_trainer import RewardTrainer

rng = np.random.default_rng(1)
PAIRS, TOKENS = 6, 4


def tensor(shape, low, high):
    """Draws float32 numbers with four decimals, so that the JSON holds them exactly enough."""
    return torch.tensor(rng.uniform(low, high, shape).round(4), dtype=torch.float32)


def accelerator():
    """An accelerator of one process."""
    return SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x)


def metrics():
    """The trainers' table of metrics."""
    return collections.defaultdict(lambda: collections.defaultdict(list))


def dpo_pair(loss_type, beta, label_smoothing, log_probs, ref_log_probs):
    """The loss of one pair, from log-probabilities [2 = (chosen, rejected), TOKENS]."""
    trainer = mock.Mock(spec=[])
    trainer.model = SimpleNamespace(training=False)
    trainer.accelerator = accelerator()
    trainer.aux_loss_enabled = trainer.use_weighting = False
    trainer.precompute_ref_logps = True
    trainer.ld_alpha = None
    trainer.f_divergence_type = "reverse_kl"
    trainer.loss_types, trainer.loss_weights = [loss_type], [1.0]
    trainer.beta, trainer.label_smoothing = beta, label_smoothing
    trainer._metrics, trainer._total_train_tokens, trainer._tp_size = metrics(), 0, 1

    zeros = torch.zeros(2, TOKENS)
    outputs = SimpleNamespace(
        log_probs=log_probs, entropy=zeros, is_top1=zeros.bool(), mean_logits=zeros
    )
    # The first position is a prompt's: the shifted mask has TOKENS ones, the mask as many.
    mask = torch.cat([torch.zeros(2, 1), torch.ones(2, TOKENS)], dim=1).long()
    ref_chosen, ref_rejected = ref_log_probs.sum(1).chunk(2)
    inputs = {
        "input_ids": torch.zeros(2, TOKENS + 1).long(),
        "attention_mask": torch.ones(2, TOKENS + 1).long(),
        "completion_mask": mask,
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)


def dpo(loss_type, beta, label_smoothing=0.0):
    """Losses of all pairs, with the gradient in the summed log-probabilities."""
    log_probs = tensor((PAIRS, 2, TOKENS), -3, 0).requires_grad_()
    ref = tensor((PAIRS, 2, TOKENS), -3, 0)
    losses = torch.stack(
        [
            dpo_pair(loss_type, beta, label_smoothing, log_probs[i], ref[i]).reshape(())
            for i in range(PAIRS)
        ]
    )
    (grad,) = torch.autograd.grad(losses.sum(), [log_probs])
    return {
        "inputs": {
            "log_probs": log_probs.detach().sum(-1).tolist(),
            "ref_log_probs": ref.sum(-1).tolist(),
            "beta": beta,
            "label_smoothing": label_smoothing,
            "length": TOKENS,
        },
        # A summed log-probability has the gradient of any of its tokens.
        "outputs": {"loss": losses.detach().tolist(), "grad": grad[..., 0].tolist()},
    }


def reward(margin, centering):
    """Losses of a reward model, with the gradient in the rewards [PAIRS, 2]."""
    rewards = tensor((PAIRS, 2), -2, 2).requires_grad_()
    margins = tensor(PAIRS, 0, 1) if margin else torch.zeros(PAIRS)
    losses = []
    for i in range(PAIRS):
        trainer = mock.Mock(spec=[])
        trainer.model = SimpleNamespace(training=False)
        trainer.accelerator = accelerator()
        trainer.args = SimpleNamespace(center_rewards_coefficient=centering)
        trainer._metrics, trainer._total_train_tokens, trainer._tp_size = metrics(), 0, 1
        logits = SimpleNamespace(logits=rewards[i][:, None])
        inputs = {"attention_mask": torch.ones(2, 3).long()}
        if margin:
            inputs["margin"] = margins[i : i + 1]
        compute = RewardTrainer.compute_loss
        losses.append(compute(trainer, lambda logits=logits, **_: logits, inputs).reshape(()))
    losses = torch.stack(losses)
    (grad,) = torch.autograd.grad(losses.sum(), [rewards])
    return {
        "inputs": {
            "rewards": rewards.detach().tolist(),
            "margin": margins.tolist(),
            "centering": centering or 0.0,
        },
        "outputs": {"loss": losses.detach().tolist(), "grad": grad.tolist()},
    }


def main(path):
    """Writes all cases; "aot" of a single pair is DPO with conservative label smoothing."""
    cases = {
        "dpo_sigmoid": dpo("sigmoid", 0.1),
        "dpo_conservative": dpo("aot", 0.3, 0.2),
        "dpo_robust": dpo("robust", 0.3, 0.2),
        "ipo": dpo("ipo", 0.2),
        "reward_plain": reward(False, None),
        "reward_margin": reward(True, None),
        "reward_centered": reward(True, 0.01),
    }
    versions = {name: importlib.metadata.version(name) for name in ("trl", "torch", "numpy")}
    record = {"versions": {**versions, "python": platform.python_version()}, "cases": cases}
    with open(path, "w") as file:
        json.dump(record, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
