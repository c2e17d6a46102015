"""The strict machine: eight simulated devices, rank promotion raises, compiled programs kept."""

import os
import pathlib

import hypothesis
import jax
import pytest

# Scripts that made the numbers, in environments of their own: doctest would import them.
collect_ignore_glob = ["losses/goldens/*"]

CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "jax"

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# One directory for all workers and for the processes that tests start: see filterwarnings in
# pyproject.toml for the entry that a killed process leaves half-written.
jax.config.update(
    "jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(CACHE))
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

# The first example compiles, so no example has a deadline; the same examples on every machine.
hypothesis.settings.register_profile("strict", deadline=None, derandomize=True)
hypothesis.settings.load_profile("strict")

HASTY = ("lm", "streams", "test_generate.py")
"""Tests whose programs run for moments: to optimise them takes longer than they do."""


@pytest.fixture(autouse=True, scope="module")
def haste(request):
    """Compiles without most optimisations what is compiled for a hasty test, children included."""
    room = request.path.relative_to(pathlib.Path(__file__).parent).parts[0]
    if (room in HASTY) != jax.config.read("jax_disable_most_optimizations"):
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(room in HASTY))
        jax.config.update("jax_disable_most_optimizations", room in HASTY)
        # Others shall get no program of these, nor these of others: numbers differ by rounding.
        jax.clear_caches()
