"""Chains and random processes as tables: corridor, Strens's chain, RiverSwim, DeepSea, Garnet.

    T[i, j, k] = p(s_{t+1} = i | s_t = j, a_t = k)

Small problems with known answers (corridor), with rewards far from the start (chain, RiverSwim,
DeepSea: the exploration problems), and random ones for property tests (Garnet). The functions
return a `TabularMDP`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jrl.envs.tabular import TabularMDP, make_mdp
from jrl.types import Key, Leaf

__all__ = ["chain", "corridor", "deep_sea", "garnet", "river_swim"]


def corridor(length: int = 5) -> TabularMDP:
    """Makes a corridor of `length` cells between two terminal ends; reward 1 at the right end.

    State 0 and state length + 1 are terminal, the start is the middle. Actions: left, right.

        V*(i) = gamma^(length - i),   V_uniform(i) = i / (length + 1) for gamma = 1

    Source: the random walk of Sutton & Barto 2018, example 6.2,
    http://incompleteideas.net/book/the-book-2nd.html, with the direction as the action.
    Raises ValueError when `length` is less than 1.

    >>> mdp = corridor(3)
    >>> mdp.num_states, float(mdp.reward[3, 1])
    (5, 1.0)
    """
    _at_least("length", length, 1)
    states = length + 2
    transition = np.zeros((states, states, 2))
    reward = np.zeros((states, 2))
    cells = np.arange(1, length + 1)
    transition[cells - 1, cells, 0] = 1.0
    transition[cells + 1, cells, 1] = 1.0
    reward[length, 1] = 1.0
    terminal = np.isin(np.arange(states), (0, states - 1))
    return make_mdp(transition, reward, np.eye(states)[(length + 1) // 2], terminal)


def chain(length: int = 5, slip: float = 0.2, near: float = 2.0, far: float = 10.0) -> TabularMDP:
    """Makes the chain: forward one cell, or back to the first with reward `near`.

    Actions: forward, back; with probability `slip` the other one happens. Forward in the last
    cell stays there and pays `far`. No terminal states. Source: Strens 2000, "A Bayesian framework
    for reinforcement learning", figure 1, https://dl.acm.org/doi/10.5555/645529.658114.
    Raises ValueError when `length` is less than 2 or `slip` is not a probability.

    >>> chain().reward[:, 0]
    Array([0.4, 0.4, 0.4, 0.4, 8.4], dtype=float32)
    """
    _at_least("length", length, 2)
    _probability("slip", slip)
    cells = np.arange(length)
    forward, back = np.zeros((2, length, length))
    forward[np.minimum(cells + 1, length - 1), cells] = 1.0
    back[0] = 1.0
    weights = np.array([[1 - slip, slip], [slip, 1 - slip]])
    transition = np.einsum("mij,mk->ijk", np.stack([forward, back]), weights)
    paid = np.stack([np.where(cells == length - 1, far, 0.0), np.full(length, near)])
    return make_mdp(transition, np.einsum("mj,mk->jk", paid, weights), np.eye(length)[0])


def river_swim(length: int = 6, near: float = 5.0, far: float = 10000.0) -> TabularMDP:
    """Makes RiverSwim: swimming right against the current pays only at the far end.

    Actions: left (always succeeds), right. Right: +1 w.p. 0.3, stay 0.6, -1 w.p. 0.1; in the first
    cell stay 0.7, +1 w.p. 0.3; in the last stay 0.3 (which pays `far`), -1 w.p. 0.7. Left in the
    first cell pays `near`. Start in cell 1 or 2 with probability 1/2 each. No terminal states.
    Source: Strehl & Littman 2008, "An analysis of model-based interval estimation for Markov
    decision processes", figure 2, https://doi.org/10.1016/j.jcss.2007.08.009.
    Raises ValueError when `length` is less than 3.

    >>> mdp = river_swim()
    >>> mdp.transition[:, 3, 1]
    Array([0. , 0. , 0.1, 0.6, 0.3, 0. ], dtype=float32)
    """
    _at_least("length", length, 3)
    last = length - 1
    transition, reward = np.zeros((2, length, length, 2))
    cells = np.arange(length)
    transition[np.maximum(cells - 1, 0), cells, 0] = 1.0
    inner = cells[1:-1]
    transition[inner - 1, inner, 1] = 0.1
    transition[inner, inner, 1] = 0.6
    transition[inner + 1, inner, 1] = 0.3
    transition[0, 0, 1], transition[1, 0, 1] = 0.7, 0.3
    transition[last - 1, last, 1], transition[last, last, 1] = 0.7, 0.3
    reward[0, 0, 0] = near
    reward[last, last, 1] = far
    return make_mdp(transition, reward, (np.eye(length)[1] + np.eye(length)[2]) / 2)


def deep_sea(
    size: int = 10,
    stochastic: bool = False,
    move_cost: float = 0.01,
    mapping: Leaf = None,
) -> TabularMDP:
    """Makes DeepSea: dive `size` rows, only `size` moves to the right in a row find the treasure.

    State row * size + column, and one terminal state size^2 below. Each step goes down one row and
    one column left or right; going right costs `move_cost / size`; going right in the last column
    pays 1. `mapping` (0 or 1, [size, size]) says which action goes right in each cell, action 1
    everywhere by default. Stochastic: right goes right only with probability 1 - 1/size.

    Source: Osband et al. 2020, "Behaviour suite for reinforcement learning", appendix,
    https://arxiv.org/abs/1908.03568. Deviation: the stochastic version of bsuite also adds N(0, 1)
    to the reward of the bottom corners, which a table of expectations leaves out.
    Raises ValueError when `size` is less than 2 or `mapping` has another shape or other numbers.

    >>> deep_sea(4).num_states
    17
    """
    _at_least("size", size, 2)
    mapping = np.ones((size, size), int) if mapping is None else np.asarray(mapping)
    if mapping.shape != (size, size) or not np.isin(mapping, (0, 1)).all():
        raise ValueError(f"mapping: must hold 0 or 1 in shape ({size}, {size})")
    states = size * size + 1
    transition = np.zeros((states, states, 2))
    reward = np.zeros((states, 2))
    arrive = 1 - 1 / size if stochastic else 1.0
    row, column = np.divmod(np.arange(size * size), size)
    here, right = row * size + column, mapping.ravel()

    def below(columns: np.ndarray) -> np.ndarray:
        return np.where(row == size - 1, states - 1, (row + 1) * size + columns)

    transition[below(np.maximum(column - 1, 0)), here, 1 - right] = 1.0
    np.add.at(transition, (below(np.minimum(column + 1, size - 1)), here, right), arrive)
    np.add.at(transition, (below(column), here, right), 1 - arrive)
    reward[here, right] = (column == size - 1) - move_cost / size
    terminal = np.arange(states) == states - 1
    return make_mdp(transition, reward, np.eye(states)[0], terminal)


def garnet(key: Key, num_states: int, num_actions: int, branching: int) -> TabularMDP:
    """Draws a random process: `branching` successors for each state and action.

    The successors are drawn without replacement, their probabilities are the gaps between sorted
    uniform cut points, rewards are N(0, 1) for each state and action, the start is uniform, and no
    state is terminal. Pure: `vmap` over keys gives a batch. Source: Archibald, McKinnon & Thomas
    1995, https://doi.org/10.1057/jors.1995.50, in the form of Bhatnagar et al. 2009,
    https://doi.org/10.1016/j.automatica.2009.07.008. Deviation: they pay by state alone.
    Raises ValueError when a size is less than 1 or `branching` exceeds `num_states`.

    >>> mdp = garnet(jax.random.key(0), 5, 2, 3)
    >>> int((mdp.transition > 0).sum(0).max())
    3
    """
    for name, size in ("num_states", num_states), ("num_actions", num_actions):
        _at_least(name, size, 1)
    if not 1 <= branching <= num_states:
        raise ValueError(f"branching: must be 1 to num_states = {num_states}, got {branching}")
    order, cuts, rewards = jax.random.split(key, 3)
    shape = (num_states, num_actions)
    cut = jnp.sort(jax.random.uniform(cuts, (branching - 1, *shape)), axis=0)
    edges = jnp.concatenate([jnp.zeros((1, *shape)), cut, jnp.ones((1, *shape))])
    gaps = jnp.diff(edges, axis=0)
    # The ranks of uniform numbers are a random permutation: those below `branching` are chosen.
    rank = jnp.argsort(jax.random.uniform(order, (num_states, *shape)), axis=0)
    padded = jnp.concatenate([gaps, jnp.zeros((num_states - branching, *shape))])
    return TabularMDP(
        transition=jnp.take_along_axis(padded, rank, axis=0),
        reward=jax.random.normal(rewards, shape),
        initial=jnp.full(num_states, 1 / num_states),
        terminal=jnp.zeros(num_states, bool),
    )


def _at_least(name: str, size: int, least: int) -> None:
    if size < least:
        raise ValueError(f"{name}: must be at least {least}, got {size}")


def _probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: must be a probability, got {value}")
