"""The most probable tokens of every family, against transformers' generate."""

import families
import jax
import numpy as np
import pytest

from jrl.lm import huggingface, sampler, transformer
from jrl.lm.generation import generate
from jrl.lm.requests import Settings


@pytest.mark.parametrize("family", families.FAMILIES)
def test_greedy_is_that_of_transformers(family, tmp_path):
    import torch

    torch.set_num_threads(1)  # more than one wait for each other on a busy machine
    theirs = families.make(family)
    theirs.save_pretrained(tmp_path)
    config, params = huggingface.load(tmp_path)
    prompts = [families.tokens(1, n, seed=n)[0] for n in (1, 5, 9)]
    with_ = sampler.make(
        transformer.make(config), sampler.Config(slots=2, length=80, queue=4, buckets=())
    )
    ours = generate(with_, params, prompts, jax.random.key(0), Settings(64, temperature=0.0))
    for prompt, completion in zip(prompts, ours, strict=True):
        expected = theirs.generate(
            torch.from_numpy(prompt[None].astype(np.int64)),
            max_new_tokens=64, min_new_tokens=64, do_sample=False, use_cache=True,
            eos_token_id=None, pad_token_id=0,
        )[0, len(prompt) :]  # fmt: skip
        assert completion.tokens.tolist() == expected.tolist()
        assert len(completion.tokens) == 64 and completion.finish == "length"
