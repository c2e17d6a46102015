"""Writes trl.json: the numbers of TRL for DPO, its variants and relatives, and reward models.

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
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
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


def dpo_pair(loss_type, beta, label_smoothing, log_probs, ref_log_probs, lengths):
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
    # The first position is a prompt's: the shifted mask has as many ones as the mask.
    mask = (torch.arange(TOKENS + 1) > 0) & (torch.arange(TOKENS + 1) <= lengths[:, None])
    ref_chosen, ref_rejected = ref_log_probs.sum(1).chunk(2)
    inputs = {
        "input_ids": torch.zeros(2, TOKENS + 1).long(),
        "attention_mask": torch.ones(2, TOKENS + 1).long(),
        "completion_mask": mask.long(),
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)


def dpo(loss_type, beta, label_smoothing=0.0, ragged=False):
    """Losses of all pairs, with the gradient in the summed log-probabilities."""
    log_probs = tensor((PAIRS, 2, TOKENS), -3, 0)
    ref = tensor((PAIRS, 2, TOKENS), -3, 0)
    length = torch.full((PAIRS, 2), TOKENS)
    if ragged:
        length = torch.tensor(rng.integers(1, TOKENS + 1, (PAIRS, 2)))
        # The fused head gives zeros where there is no label.
        log_probs, ref = (x * (torch.arange(TOKENS) < length[..., None]) for x in (log_probs, ref))
    log_probs.requires_grad_()
    pair = [
        dpo_pair(loss_type, beta, label_smoothing, log_probs[i], ref[i], length[i])
        for i in range(PAIRS)
    ]
    losses = torch.stack([loss.reshape(()) for loss in pair])
    (grad,) = torch.autograd.grad(losses.sum(), [log_probs])
    return {
        "inputs": {
            "log_probs": log_probs.detach().sum(-1).tolist(),
            "ref_log_probs": ref.sum(-1).tolist(),
            "beta": beta,
            "label_smoothing": label_smoothing,
            "length": length.tolist() if ragged else TOKENS,
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


def reference_free(loss_of_means):
    """Losses of pairs of mean log-probabilities [PAIRS, 2], with the gradient."""
    means = tensor((PAIRS, 2), -2, -0.01).requires_grad_()
    losses = loss_of_means(means[:, 0], means[:, 1])
    (grad,) = torch.autograd.grad(losses.sum(), [means])
    return {
        "inputs": {"means": means.detach().tolist()},
        "outputs": {"loss": losses.detach().tolist(), "grad": grad.tolist()},
    }


def simpo(beta, margin, label_smoothing):
    """SimPO, a loss type of CPO."""
    trainer = SimpleNamespace(alpha=0.0, accelerator=accelerator(), loss_type="simpo")
    trainer.beta, trainer.simpo_gamma, trainer.label_smoothing = beta, margin, label_smoothing
    case = reference_free(lambda w, x: CPOTrainer.cpo_loss(trainer, w, x)[0])
    case["inputs"] |= {"beta": beta, "margin": margin, "label_smoothing": label_smoothing}
    return case


def odds_ratio(beta):
    """The odds-ratio term of ORPO, which the trainer subtracts."""
    trainer = SimpleNamespace(beta=beta, accelerator=accelerator())
    case = reference_free(lambda w, x: -ORPOTrainer.odds_ratio_loss(trainer, w, x)[0])
    case["inputs"]["beta"] = beta
    return case


def kto(beta, desirable_weight, undesirable_weight, shift):
    """KTO over a batch of PAIRS single responses; the loss is their mean."""
    log_probs = tensor((PAIRS, TOKENS), -3, 0).requires_grad_()
    ref = tensor(PAIRS, -9, -3)
    mismatched, ref_mismatched = tensor(PAIRS, -9, -3) + shift, tensor(PAIRS, -9, -3)
    desirable = torch.tensor([True, False, False, True, True, False])

    trainer = mock.Mock(spec=[])
    trainer.model = SimpleNamespace(training=False)
    trainer.accelerator = accelerator()
    trainer.aux_loss_enabled = False
    trainer.precompute_ref_logps = trainer.calculate_KL = True
    trainer._compute_kl_logps = lambda model, batch: mismatched
    trainer.loss_type, trainer.beta = "kto", beta
    trainer.desirable_weight, trainer.undesirable_weight = desirable_weight, undesirable_weight
    trainer._metrics, trainer._total_train_tokens, trainer._tp_size = metrics(), 0, 1
    zeros = torch.zeros(PAIRS, TOKENS)
    outputs = SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros)
    ones = torch.ones(PAIRS, TOKENS + 1).long()
    inputs = {
        "input_ids": 0 * ones,
        "attention_mask": ones,
        "completion_mask": ones,
        "label": desirable,
        "ref_logps": ref,
        "ref_KL_logps": ref_mismatched,
    }
    loss = KTOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    (grad,) = torch.autograd.grad(loss, [log_probs])
    return {
        "inputs": {
            "log_probs": log_probs.detach().sum(-1).tolist(),
            "ref_log_probs": ref.tolist(),
            "mismatched": mismatched.tolist(),
            "ref_mismatched": ref_mismatched.tolist(),
            "desirable": desirable.tolist(),
            "beta": beta,
            "desirable_weight": desirable_weight,
            "undesirable_weight": undesirable_weight,
        },
        "outputs": {
            "loss": loss.item(),
            "grad": grad[:, 0].tolist(),
            "baseline": trainer._metrics["eval"]["kl"][0],
        },
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
        "dpo_hinge": dpo("hinge", 0.3),
        "ipo_ragged": dpo("ipo", 0.2, ragged=True),
        "dpo_normalised": dpo("sigmoid_norm", 0.5, ragged=True),
        "simpo": simpo(2.0, 0.5, 0.0),
        "simpo_smoothed": simpo(2.5, 1.0, 0.1),
        "odds_ratio": odds_ratio(0.3),
        "kto": kto(0.3, 1.0, 1.5, 2.0),
        "kto_negative_divergence": kto(0.3, 2.0, 1.0, -9.0),
    }
    versions = {name: importlib.metadata.version(name) for name in ("trl", "torch", "numpy")}
    record = {"versions": {**versions, "python": platform.python_version()}, "cases": cases}
    with open(path, "w") as file:
        json.dump(record, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
