"""Packing: several examples in one row, told apart by segment ids, with nothing split.

    row        a a a b b c c c c 0
    segment    1 1 1 2 2 3 3 3 3 0      0 is padding
    position   0 1 2 0 1 0 1 2 3 0

An example is a tuple of sequences: one, or the chosen and the rejected answer of a pair. Those
of a pair have the same row and segment id in two batches.
"""

from collections.abc import Sequence

import numpy as np

from jrl.data.tokens import Tokens

__all__ = ["Batch", "Example", "Rows", "fill", "first_fit", "pack", "unpack"]

Example = tuple[Tokens, ...]
Rows = list[list[Example]]
Batch = dict[str, np.ndarray] | dict[str, dict[str, np.ndarray]]
"""Arrays [B, L]: `tokens` int32, `mask` bool, `segment_ids` int32, `positions` int32; or such a
dict for each of `chosen` and `rejected`."""


def first_fit(sizes: np.ndarray | Sequence[Sequence[int]], capacity: int) -> list[list[int]]:
    """Puts each item into the first bin that has room for it, in the order of the items.

        bin(i) = min {b : sum_{j in b} s_j + s_i <= capacity}

    Source: Johnson 1973, "Near-optimal bin packing algorithms"; for sequences of tokens Krell et
    al. 2021, https://arxiv.org/abs/2107.02027. With d = 1 at most 1.7 times the optimal number of
    bins (Dosa & Sgall 2013, theorem 1, https://doi.org/10.4230/LIPIcs.STACS.2013.538).
    Args: `sizes` [n, d] integers: an item has room where every one of its d sizes has.
    Returns: for each bin the indices of its items.
    Raises: ValueError when an item is larger than a bin.

    >>> first_fit([[3], [5], [2], [1]], 6)
    [[0, 2, 3], [1]]
    """
    sizes = np.asarray(sizes, np.int64)
    if sizes.size and sizes.max() > capacity:
        raise ValueError(f"an item of size {sizes.max()} does not fit into capacity {capacity}")
    bins: list[list[int]] = []
    room = np.full(sizes.shape, capacity, np.int64)
    for n, size in enumerate(sizes):
        fits = np.all(room[: len(bins)] >= size, axis=-1)
        place = int(np.argmax(fits)) if fits.any() else len(bins)
        if place == len(bins):
            bins.append([])
        bins[place].append(n)
        room[place] -= size
    return bins


def pack(examples: Sequence[Example], length: int) -> Rows:
    """Packs examples into rows of `length` tokens by `first_fit`.

    Args: `examples`: all of the same number of sequences.
    Returns: for each row its examples. Raises: ValueError when one is longer than a row.

    >>> def ones(n):
    ...     return (Tokens(np.ones(n, np.int32), np.ones(n, bool)),)
    >>> [len(row) for row in pack([ones(3), ones(5), ones(2), ones(1)], 6)]
    [3, 1]
    """
    if not examples:
        return []
    sizes = [[part.tokens.size for part in example] for example in examples]
    return [[examples[n] for n in row] for row in first_fit(sizes, length)]


def fill(
    rows: Rows, batch_size: int, length: int, names: Sequence[str] = (), pad_id: int = 0
) -> Batch:
    """Writes rows into arrays [batch_size, length]; what is left over is padding.

    Args: `rows`: at most `batch_size`; `names` of the sequences of an example, none for one;
    `pad_id`: the token of padding, which is in no mask and in segment 0.
    Returns: `tokens`, `mask`, `segment_ids` (1, 2, ... within a row) and `positions` (from 0 in
    every segment), or such a dict for each name.
    Raises: ValueError when there are more rows than `batch_size`, or a row is too long.

    >>> row = [(Tokens(np.array([7, 8], np.int32), np.array([False, True])),)] * 2
    >>> batch = fill([row], 1, 5)
    >>> batch["tokens"].tolist(), batch["segment_ids"].tolist(), batch["positions"].tolist()
    ([[7, 8, 7, 8, 0]], [[1, 1, 2, 2, 0]], [[0, 1, 0, 1, 0]])
    """
    if len(rows) > batch_size:
        raise ValueError(f"{len(rows)} rows do not fit into batch_size={batch_size}")
    made = []
    for part in range(max(1, len(names))):
        shape = (batch_size, length)
        batch = {
            "tokens": np.full(shape, pad_id, np.int32),
            "mask": np.zeros(shape, bool),
            "segment_ids": np.zeros(shape, np.int32),
            "positions": np.zeros(shape, np.int32),
        }
        for b, row in enumerate(rows):
            begin = 0
            for segment, example in enumerate(row, 1):
                tokens, mask = example[part]
                end = begin + tokens.size
                if end > length:
                    raise ValueError(f"a row of {end} tokens or more does not fit into {length}")
                batch["tokens"][b, begin:end] = tokens
                batch["mask"][b, begin:end] = mask
                batch["segment_ids"][b, begin:end] = segment
                batch["positions"][b, begin:end] = np.arange(tokens.size)
                begin = end
        made.append(batch)
    return dict(zip(names, made, strict=True)) if names else made[0]


def unpack(batch: dict[str, np.ndarray]) -> list[list[Tokens]]:
    """Takes the examples out of a batch again: the inverse of `fill` for one sequence.

    Args: `batch`: the arrays of `fill`. Returns: for each row its segments.

    >>> rows = [[(Tokens(np.array([7, 8], np.int32), np.array([False, True])),)]]
    >>> unpack(fill(rows, 2, 4))
    [[Tokens(tokens=array([7, 8], dtype=int32), mask=array([False,  True]))], []]
    """
    rows = []
    for tokens, mask, segments in zip(
        batch["tokens"], batch["mask"], batch["segment_ids"], strict=True
    ):
        inside = [segments == n for n in range(1, int(segments.max(initial=0)) + 1)]
        rows.append([Tokens(tokens[where], mask[where]) for where in inside])
    return rows
