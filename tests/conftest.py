"""The strict machine: eight simulated devices, rank promotion raises, compiled programs kept."""

import os
import pathlib

import hypothesis
import jax

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
