"""Writes verl_tokens.json: the numbers of verl for policy losses on tokens and their columns.

verl is no dependency of jrl. In a virtual environment of its own:

    pip install torch==2.13.0
    pip install trl && pip install --no-deps verl
    pip install ray hydra-core codetiming dill orjson tensordict omegaconf
    python tests/losses/goldens/make_verl_tokens.py tests/losses/goldens/verl_tokens.json
"""

import importlib.metadata
import json
import platform
import sys

import numpy as np
import torch
from verl.trainer.ppo import core_algos, rollout_corr_helper
from verl.workers.config import ActorConfig

rng = np.random.default_rng(3)
ROWS, TOKENS = 8, 6


def tensor(shape, low=-2.0, high=2.0):
    """Draws float32 numbers with four decimals, so that the JSON holds them exactly enough."""
    return torch.tensor(rng.uniform(low, high, shape).round(4), dtype=torch.float32)


def case(inputs, outputs):
    """Turns tensors into nested lists."""
    return {
        "inputs": {k: np.asarray(v).tolist() for k, v in inputs.items()},
        "outputs": {k: np.asarray(v.detach()).tolist() for k, v in outputs.items()},
    }


def ragged():
    """A mask of ragged rows with holes, and one row of which nothing is kept."""
    mask = torch.arange(TOKENS) < torch.tensor([6, 3, 1, 5, 0, 6, 2, 4])[:, None]
    mask[0, 2:4] = mask[3, 0] = False
    return mask


def aggregation(mode):
    """A loss matrix, aggregated, with the gradient."""
    losses, mask = tensor((ROWS, TOKENS)).requires_grad_(), ragged()
    value = core_algos.agg_loss(losses, mask.float(), mode)
    (grad,) = torch.autograd.grad(value, [losses])
    return case({"losses": losses.detach(), "mask": mask}, {"value": value, "grad": grad})


def policy(name, mode, low, high, dual=3.0):
    """A policy loss with the gradient in the log-probabilities; advantages of tokens."""
    log_probs = tensor((ROWS, TOKENS), -3, 0).requires_grad_()
    old = log_probs.detach() + tensor((ROWS, TOKENS), -0.6, 0.6)
    advantages, mask = tensor((ROWS, TOKENS)), ragged()
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio_low=low,
        clip_ratio_high=high,
        clip_ratio_c=dual,
    )
    function = core_algos.get_policy_loss_fn(name)
    value, _ = function(old, log_probs, advantages, mask.float(), mode, config)
    (grad,) = torch.autograd.grad(value, [log_probs])
    inputs = {
        "log_probs": log_probs.detach(),
        "old_log_probs": old,
        "advantages": advantages,
        "mask": mask,
        "eps_low": low,
        "eps_high": high,
        "dual_clip": dual,
    }
    return case(inputs, {"loss": value, "grad": grad})


def gae(discount, lambda_):
    """Advantages, whitened, and returns; only those that the mask keeps are meaningful."""
    rewards, values, mask = tensor((ROWS, TOKENS)), tensor((ROWS, TOKENS)), ragged()
    advantages, returns = core_algos.compute_gae_advantage_return(
        rewards, values, mask.float(), discount, lambda_
    )
    inputs = {"rewards": rewards, "values": values, "mask": mask}
    inputs |= {"discount": discount, "lambda": lambda_}
    return case(inputs, {"white": advantages * mask, "returns": returns * mask})


def kl_reward(beta):
    """Token rewards: scores on the last token, less the divergence."""
    rewards, mask = tensor(ROWS), ragged()
    log_probs, ref = tensor((ROWS, TOKENS), -3, 0), tensor((ROWS, TOKENS), -3, 0)
    scores = torch.zeros(ROWS, TOKENS)
    for row in range(ROWS):
        if mask[row].any():
            scores[row, mask[row].nonzero().max()] = rewards[row]
    out = core_algos.compute_rewards(scores, log_probs, ref, beta)
    inputs = {"rewards": rewards, "log_probs": log_probs, "ref_log_probs": ref, "mask": mask}
    return case({**inputs, "beta": beta}, {"token_rewards": out * mask})


def importance(level, threshold):
    """Weights of a rollout correction: a number truncates, a pair "low_high" masks."""
    log_probs, mask = tensor((ROWS, TOKENS), -3, 0), ragged()
    sampler = log_probs + tensor((ROWS, TOKENS), -0.8, 0.8)
    weights, _ = rollout_corr_helper.compute_rollout_correction_weights(
        log_probs - sampler, mask.float(), level, threshold
    )
    inputs = {"log_probs": log_probs, "sampler_log_probs": sampler, "mask": mask}
    return case(inputs, {"weights": weights})


def main(path):
    """Writes all cases."""
    modes = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm", "seq-mean-token-sum")
    cases = {f"aggregation_{mode}": aggregation(mode) for mode in modes}
    cases["ppo"] = policy("vanilla", "token-mean", 0.2, 0.28)
    cases["ppo_dual"] = policy("vanilla", "seq-mean-token-mean", 0.2, 0.2, 1.3)
    cases["gspo"] = policy("gspo", "seq-mean-token-mean", 0.05, 0.08)
    cases["gspo_token_mean"] = policy("gspo", "token-mean", 0.05, 0.08)
    cases["cispo"] = policy("cispo", "token-mean", 0.2, 0.28)
    cases["gae"] = gae(0.9, 0.8)
    cases["gae_undiscounted"] = gae(1.0, 1.0)
    cases["kl_reward"] = kl_reward(0.3)
    cases["importance_token_truncate"] = importance("token", 1.5)
    cases["importance_token_mask"] = importance("token", "0.6_1.5")
    cases["importance_sequence_truncate"] = importance("sequence", 1.5)
    cases["importance_sequence_mask"] = importance("sequence", "0.6_1.5")
    versions = {name: importlib.metadata.version(name) for name in ("verl", "torch", "numpy")}
    record = {"versions": {**versions, "python": platform.python_version()}, "cases": cases}
    with open(path, "w") as file:
        json.dump(record, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
