"""Records, settings and readings of batches that the tests of the loader share."""

import itertools

import jax
import numpy as np

from jrl.data import packing, tokens
from jrl.data.loader import Config

LENGTH = 24

PLAIN = Config(batch_size=3, length=LENGTH, window=8, threads=0)


def answer(prompt, completion):
    return tokens.completion(lambda text: list(text.encode()))(prompt, completion)


def make_records(n, longest=LENGTH):
    rng = np.random.default_rng(n)
    return [
        {"prompt": f"{k:03d}", "completion": "x" * int(rng.integers(1, longest - 2))}
        for k in range(n)
    ]


ENCODER = tokens.encoder("completion", answer)


def names(batch):
    """The first three bytes of every segment: which record it is."""
    return [
        bytes(segment.tokens[:3].tolist()).decode()
        for row in packing.unpack(batch)
        for segment in row
    ]


def equal(one, other):
    same = jax.tree.map(np.array_equal, one, other)
    return jax.tree.structure(one) == jax.tree.structure(other) and all(jax.tree.leaves(same))


def take(loader, n):
    return list(itertools.islice(loader, n))
