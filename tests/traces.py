"""A `jit` for tests that notices when a program is traced again."""

import chex
import jax


def count_traces(function, jit=jax.jit):
    """jit that fails when it traces a second time, even for equal shapes."""
    chex.clear_trace_counter()
    # A function of its own: chex reads its source, which a partial has none of.
    return jit(chex.assert_max_traces(lambda *args: function(*args), n=1))
