"""Grid worlds as tables: CliffWalking, FrozenLake and FourRooms.

    T[i, j, k] = sum_m w_m 1[i = move(j, direction m of action k)]

Every one is a list of directions per action with a probability each; a move into a wall or over
the edge stays. States count the cells row by row. The functions return a `TabularMDP`: give it to
`jrl.envs.tabular.as_environment` to act in it, to `jrl.tabular` to solve it.
"""

from collections.abc import Sequence

import numpy as np

from jrl.envs.tabular import TabularMDP, make_mdp
from jrl.types import Leaf

__all__ = [
    "FOUR_ROOMS",
    "LAKE_4X4",
    "LAKE_8X8",
    "cell_numbers",
    "cliff_walk",
    "four_rooms",
    "frozen_lake",
]

UP, RIGHT, DOWN, LEFT = (-1, 0), (0, 1), (1, 0), (0, -1)

LAKE_4X4 = ("SFFF", "FHFH", "FFFH", "HFFG")

LAKE_8X8 = (
    "SFFFFFFF",
    "FFFFFFFF",
    "FFFHFFFF",
    "FFFFFHFF",
    "FFFHFFFF",
    "FHHFFFHF",
    "FHFFHFHF",
    "FFFHFFFG",
)

FOUR_ROOMS = (
    "#############",
    "#     #     #",
    "#     #     #",
    "#           #",
    "#     #     #",
    "#     #     #",
    "## ####     #",
    "#     ### ###",
    "#     #     #",
    "#     #     #",
    "#           #",
    "#     #     #",
    "#############",
)


def cliff_walk(slippery: bool = False) -> TabularMDP:
    """Makes CliffWalking: 4 x 12 cells, -1 per step, -100 and back to the start off the cliff.

    Actions: up, right, down, left. Start at 36, bottom left; the goal 47, bottom right, is
    terminal; the cliff is the row between them. Slippery: the intended direction and the two at
    right angles to it have probability 1/3 each. Source: Sutton & Barto 2018, example 6.6,
    http://incompleteideas.net/book/the-book-2nd.html; equal to Gymnasium's CliffWalking-v1, but
    that its goal absorbs here. Deviation: where, slippery, one action can both walk to the start
    and fall back to it, landing there pays the average of the two rewards; expectations agree.

    >>> mdp = cliff_walk()
    >>> mdp.num_states, mdp.num_actions, float(mdp.reward[36, 1])
    (48, 4, -100.0)
    """
    start, goal = 36, 47
    turns = (1 / 3, 1 / 3, 0.0, 1 / 3) if slippery else (1.0, 0.0, 0.0, 0.0)
    transition = _moves(np.ones((4, 12), bool), (UP, RIGHT, DOWN, LEFT), turns)
    cliff = np.arange(start + 1, goal)
    walked, fallen = transition[start], transition[cliff].sum(0)
    reward = np.full(transition.shape, -1.0)
    landed = np.maximum(walked + fallen, 1e-12)
    reward[start] = np.where(fallen > 0, -(walked + 100 * fallen) / landed, -1.0)
    transition[start] = walked + fallen
    transition[cliff] = 0.0
    return make_mdp(transition, reward, np.eye(48)[start], np.arange(48) == goal)


def frozen_lake(
    layout: Sequence[str] = LAKE_4X4, slippery: bool = True, success: float = 1 / 3
) -> TabularMDP:
    """Makes FrozenLake: reward 1 for reaching a goal `G`, holes `H` end the episode with 0.

    Actions: left, down, right, up. Slippery: the intended direction has probability `success`,
    the two at right angles share the rest. Start uniformly on the cells `S`. Source: Gymnasium's
    FrozenLake-v1 (`LAKE_4X4`) and FrozenLake8x8-v1 (`LAKE_8X8`), whose tables it equals.

    Raises ValueError when rows differ in length, a letter is not one of S, F, H, G, there is no
    S, or `success` is not a probability.

    >>> frozen_lake().reward[14]
    Array([0.        , 0.33333334, 0.33333334, 0.33333334], dtype=float32)
    """
    cells = _cells(layout, "SFHG")
    if not (cells == "S").any():
        raise ValueError("layout: has no start, mark one cell S")
    if not 0 <= success <= 1:
        raise ValueError(f"success: must be a probability, got {success}")
    slip = (1 - success) / 2
    turns = (success, slip, 0.0, slip) if slippery else (1.0, 0.0, 0.0, 0.0)
    transition = _moves(np.ones(cells.shape, bool), (LEFT, DOWN, RIGHT, UP), turns)
    cells = cells.ravel()
    reward = np.zeros(transition.shape)
    reward[cells == "G"] = 1.0
    start = (cells == "S") / (cells == "S").sum()
    return make_mdp(transition, reward, start, (cells == "G") | (cells == "H"))


def four_rooms(
    goal: tuple[int, int] = (7, 9),
    start: tuple[int, int] | None = None,
    success: float = 2 / 3,
    layout: Sequence[str] = FOUR_ROOMS,
) -> TabularMDP:
    """Makes the four rooms: 104 open cells, reward 1 for entering the goal, which is terminal.

    Actions: up, right, down, left. The intended direction has probability `success`, each of the
    three others (1 - success) / 3. `goal` and `start` are (row, column) of the layout; without a
    start, episodes begin uniformly on the other cells. Source: Sutton, Precup & Singh 1999,
    "Between MDPs and semi-MDPs", section 2,
    https://doi.org/10.1016/S0004-3702(99)00052-1 (success 2/3, slips of 1/9, discount 0.9); the
    default goal is the hallway between the two rooms on the right.

    Raises ValueError when `goal` or `start` is not an open cell, when they are the same cell, or
    when `success` is not a probability.

    >>> mdp = four_rooms()
    >>> mdp.num_states, int(mdp.terminal.sum())
    (104, 1)
    """
    number = cell_numbers(layout)
    for name, cell in ("goal", goal), ("start", start):
        if cell is not None and not _inside(number >= 0, *cell):
            raise ValueError(f"{name}: {cell} is not an open cell of the layout")
    if not 0 <= success <= 1:
        raise ValueError(f"success: must be a probability, got {success}")
    if start == goal:
        raise ValueError(f"start: {start} is the goal, choose another cell")
    slip = (1 - success) / 3
    transition = _moves(number >= 0, (UP, RIGHT, DOWN, LEFT), (success, slip, slip, slip))
    states = np.arange(transition.shape[0])
    terminal = states == number[goal]
    reward = np.zeros(transition.shape)
    reward[terminal] = 1.0
    first = ~terminal if start is None else states == number[start]
    return make_mdp(transition, reward, first / first.sum(), terminal)


def cell_numbers(layout: Sequence[str] = FOUR_ROOMS) -> Leaf:
    """Numbers the open cells of a layout row by row, -1 for walls: NumPy i64[rows, columns].

    >>> int(cell_numbers().max())
    103
    """
    free = _cells(layout, "# ") == " "
    return np.where(free, np.cumsum(free).reshape(free.shape) - 1, -1)


def _cells(layout: Sequence[str], letters: str) -> np.ndarray:
    if not layout or len({len(row) for row in layout}) != 1 or not layout[0]:
        raise ValueError("layout: must be rows of one length, at least one letter each")
    cells = np.array([list(row) for row in layout])
    if not np.isin(cells, list(letters)).all():
        raise ValueError(f"layout: may only contain the letters {letters!r}")
    return cells


def _inside(free: np.ndarray, row: int, column: int) -> bool:
    rows, columns = free.shape
    return 0 <= row < rows and 0 <= column < columns and bool(free[row, column])


def _moves(
    free: np.ndarray, directions: Sequence[tuple[int, int]], turns: Sequence[float]
) -> np.ndarray:
    """Builds T[S', S, A]; `turns[m]` is the probability of going m quarter turns off course."""
    cells = [tuple(cell) for cell in np.argwhere(free).tolist()]
    number = {cell: index for index, cell in enumerate(cells)}
    transition = np.zeros((len(cells), len(cells), len(directions)))
    for here, (row, column) in enumerate(cells):
        for action in range(len(directions)):
            for turn, probability in enumerate(turns):
                down, right = directions[(action + turn) % len(directions)]
                landing = number.get((row + down, column + right), here)
                transition[landing, here, action] += probability
    return transition
