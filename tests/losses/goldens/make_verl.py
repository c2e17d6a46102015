"""Writes verl.json: the numbers of verl for KL estimators, values, advantages and whitening.

verl is no dependency of jrl. In a virtual environment of its own:

    pip install torch==2.13.0
    pip install trl && pip install --no-deps verl
    pip install ray hydra-core codetiming dill orjson tensordict omegaconf
    python tests/losses/goldens/make_verl.py tests/losses/goldens/verl.json
"""

import importlib.metadata
import json
import platform
import sys

import numpy as np
import torch
from verl.trainer.ppo import core_algos
from verl.utils import torch_functional

rng = np.random.default_rng(0)


def tensor(shape, low=-2.0, high=2.0):
    """Draws float32 numbers with four decimals, so that the JSON holds them exactly enough."""
    return torch.tensor(rng.uniform(low, high, shape).round(4), dtype=torch.float32)


def case(inputs, outputs):
    """Turns tensors into nested lists."""
    return {
        "inputs": {k: np.asarray(v).tolist() for k, v in inputs.items()},
        "outputs": {k: np.asarray(v.detach()).tolist() for k, v in outputs.items()},
    }


def kl(name):
    """One KL estimator with its gradients in both arguments."""
    # In this range verl's clamp of k3 to 10, which jrl has not, stays out of the way.
    log_probs, ref = tensor(12, -2, 0).requires_grad_(), tensor(12, -2, 0).requires_grad_()
    value = core_algos.kl_penalty(log_probs, ref, name)
    grad, ref_grad = torch.autograd.grad(value.sum(), [log_probs, ref])
    inputs = {"log_probs": log_probs.detach(), "ref_log_probs": ref.detach()}
    return case(inputs, {"value": value, "grad": grad, "ref_grad": ref_grad})


def clipped_value():
    """The clipped value loss, one element a call because verl returns the mean."""
    v = tensor(16).requires_grad_()
    old, returns = tensor(16), tensor(16)
    one = torch.ones(1, 1)
    losses = torch.stack(
        [
            core_algos.compute_value_loss(
                v[i].reshape(1, 1), returns[i].reshape(1, 1), old[i].reshape(1, 1), one, 0.5
            )[0]
            for i in range(16)
        ]
    )
    (grad,) = torch.autograd.grad(losses.sum(), [v])
    inputs = {"v": v.detach(), "v_old": old, "target": returns, "clip": 0.5}
    return case(inputs, {"loss": losses, "grad": grad})


def advantages(estimator, ids, **options):
    """Advantages of outcome rewards, by group id, on all-true response masks."""
    rewards = tensor(len(ids))
    mask = torch.ones(len(ids), 2)
    # The reward of a response is the sum of its tokens' rewards.
    token_rewards = torch.stack([torch.zeros(len(ids)), rewards], dim=1)
    out, _ = estimator(token_rewards, mask, np.array(ids), **options)
    return case({"rewards": rewards, "group_ids": ids}, {"advantages": out[:, 0]})


def whiten(shift_mean):
    """Whitening over a mask; only the elements that the mask keeps are meaningful."""
    x = tensor((3, 5))
    mask = torch.tensor(rng.uniform(size=(3, 5)) < 0.6)
    out = torch_functional.masked_whiten(x, mask.float(), shift_mean)
    mean = torch_functional.masked_mean(x, mask.float())
    return case({"x": x, "mask": mask}, {"white": out * mask, "mean": mean})


def main(path):
    """Writes all cases."""
    even, ragged = [0, 0, 0, 0, 1, 1, 1, 1], [2, 0, 1, 0, 2, 2, 0, 3, 2, 0]
    grpo = core_algos.compute_grpo_outcome_advantage
    rloo = core_algos.compute_rloo_outcome_advantage
    cases = {f"kl_{k}": kl(k) for k in ("k1", "k2", "k3", "k3+")}
    cases["clipped_value_loss"] = clipped_value()
    for name, ids in (("even", even), ("ragged", ragged)):
        cases[f"grpo_{name}"] = advantages(grpo, ids)
        cases[f"dr_grpo_{name}"] = advantages(grpo, ids, norm_adv_by_std_in_grpo=False)
        cases[f"rloo_{name}"] = advantages(rloo, ids)
    cases["masked_whiten"] = whiten(True)
    cases["masked_whiten_keep_mean"] = whiten(False)
    versions = {name: importlib.metadata.version(name) for name in ("verl", "torch", "numpy")}
    record = {"versions": {**versions, "python": platform.python_version()}, "cases": cases}
    with open(path, "w") as file:
        json.dump(record, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
