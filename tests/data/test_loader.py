"""The loader: every record once per epoch over all processes, in rows that hold them whole."""

from collections import Counter

import numpy as np
import pytest
from loading import ENCODER, LENGTH, PLAIN, answer, make_records, names, take

from jrl.data import packing, tokens
from jrl.data.loader import Config, Loader


def test_seeds_have_orders_that_share_no_epoch():
    records = make_records(40)
    orders = set()
    for seed in range(5):
        config = Config(**{**vars(PLAIN), "batch_size": 40, "seed": seed})
        for batch in take(Loader(records, config), 5):
            orders.add(tuple(record["prompt"] for record in batch))
    assert len(orders) == 25


@pytest.mark.parametrize("process_count", [1, 2, 3, 7])
@pytest.mark.parametrize("pack", [True, False])
def test_processes_share_every_epoch_without_repetition(process_count, pack):
    records, expected = make_records(29), sorted(f"{n:03d}" for n in range(29))
    streams = []
    for index in range(process_count):
        config = Config(
            **{
                **vars(PLAIN),
                "pack": pack,
                "process_index": index,
                "process_count": process_count,
                "batch_size": 1,
            }
        )
        drawn = [
            names(batch)
            for batch in take(Loader(records, config, ENCODER), 87 // process_count + 9)
        ]
        streams.append([name for row in drawn for name in row])
    seen = [0] * process_count
    for epoch in range(3):
        # Position n of the stream of all epochs is that of process n mod P.
        share = Counter(n % process_count for n in range(epoch * 29, (epoch + 1) * 29))
        union = []
        for index, stream in enumerate(streams):
            union += stream[seen[index] : seen[index] + share[index]]
            seen[index] += share[index]
        assert sorted(union) == expected


@pytest.mark.parametrize("too_long", ["drop", "truncate"])
def test_processes_without_packing_stay_in_step(too_long):
    """Equally many batches, and a state that fits all of them and any number of them."""
    records = make_records(29, longest=40)
    base = {**vars(PLAIN), "pack": False, "too_long": too_long, "epochs": 2, "shuffle": True}

    def make(index, count, batch_size):
        config = Config(
            **{
                **base,
                "process_index": index,
                "process_count": count,
                "batch_size": batch_size,
            }
        )
        return Loader(records, config, ENCODER)

    four = [make(index, 4, 3) for index in range(4)]
    batches = [list(loader) for loader in four]
    assert {len(drawn) for drawn in batches} == {5}  # 58 examples in batches of 4 * 3.
    single = list(make(0, 1, 12))
    for parts, whole in zip(zip(*batches, strict=True), single, strict=True):
        assert sorted(sum((names(part) for part in parts), [])) == sorted(names(whole))
    four = [make(index, 4, 3) for index in range(4)]
    for loader in four:
        take(loader, 2)
    positions = {loader.get_state()["position"] for loader in four}
    assert positions == {24}
    two = [make(index, 2, 6) for index in range(2)]
    for loader in two:
        loader.set_state(four[0].get_state())
    after = [next(loader) for loader in two]
    assert sorted(sum(map(names, after), [])) == sorted(names(single[2]))
    five = make(0, 5, 3)
    with pytest.raises(ValueError, match="process_count=5 does not divide the position 24"):
        five.set_state(four[0].get_state())


def test_the_shares_of_processes_may_end_with_an_empty_batch():
    records = make_records(5)
    config = {**vars(PLAIN), "pack": False, "epochs": 1, "batch_size": 1, "process_count": 2}
    lengths = []
    for index in range(2):
        batches = list(Loader(records, Config(**{**config, "process_index": index}), ENCODER))
        lengths.append([len(names(batch)) for batch in batches])
        drawn = list(Loader(records, Config(**{**config, "process_index": index})))
        assert [len(batch) for batch in drawn] == lengths[-1]
    assert lengths == [[1, 1, 1], [1, 1, 0]]


def test_packed_rows_are_windows_of_the_stream():
    """Against first-fit with lists over what the same settings give without tokens."""
    records = make_records(29)
    stream = [
        r["prompt"]
        for (r,) in take(Loader(records, Config(**{**vars(PLAIN), "batch_size": 1})), 87)
    ]
    size = {r["prompt"]: 3 + len(r["completion"]) for r in records}
    expected = []
    for epoch in (stream[:29], stream[29:58], stream[58:]):
        for n in range(0, 29, 8):
            rows = []
            for name in epoch[n : n + 8]:
                room = (row for row in rows if sum(map(size.get, row)) + size[name] <= LENGTH)
                row = next(room, None)
                if row is None:
                    rows.append([name])
                else:
                    row.append(name)
            expected += rows
    loader = Loader(records, PLAIN, ENCODER)
    drawn = [row for batch in take(loader, 12) for row in packing.unpack(batch)]
    found = [[bytes(s.tokens[:3].tolist()).decode() for s in row] for row in drawn]
    assert found == expected[: len(found)] and len(found) == 36


def test_no_example_is_left_out_at_the_end():
    records = make_records(29)
    batches = list(Loader(records, Config(**{**vars(PLAIN), "epochs": 2}), ENCODER))
    assert {batch["tokens"].shape for batch in batches} == {(3, LENGTH)}
    counts = Counter(sum(map(names, batches), []))
    assert counts == {f"{n:03d}": 2 for n in range(29)}


def test_pairs_share_rows_and_segments():
    rng = np.random.default_rng(0)
    records = [
        {"prompt": f"{n:03d}", "chosen": "a" * int(a), "rejected": "b" * int(b)}
        for n, (a, b) in enumerate(rng.integers(1, 12, (29, 2)))
    ]
    config = Config(**{**vars(PLAIN), "epochs": 1})
    batches = list(Loader(records, config, tokens.encoder("preference", answer)))
    assert all(list(batch) == ["chosen", "rejected"] for batch in batches)
    chosen, rejected = ([names(batch[k]) for batch in batches] for k in ("chosen", "rejected"))
    assert chosen == rejected and sorted(sum(chosen, [])) == [f"{n:03d}" for n in range(29)]
    for batch in batches:
        rows = zip(packing.unpack(batch["chosen"]), packing.unpack(batch["rejected"]), strict=True)
        assert all(len(a) == len(b) for a, b in rows)


def test_what_is_cut_or_dropped_is_counted():
    records = [
        {"prompt": "000", "completion": "x"},
        {"prompt": "001", "completion": "x" * 30},
        {"prompt": "0" * 30, "completion": "x"},
    ]
    base = {**vars(PLAIN), "length": 8, "epochs": 2}
    loader = Loader(records, Config(**{**base, "too_long": "truncate"}), ENCODER)
    kept = sum(map(names, loader), [])
    assert Counter(kept) == {"000": 2, "001": 2}
    assert loader.counts == {
        "examples": 6,
        "tokens": 24,
        "rows": 4,
        "truncated": 2,
        "dropped": 2,
    }
    loader = Loader(records, Config(**{**base, "too_long": "drop"}), ENCODER)
    assert Counter(sum(map(names, loader), [])) == {"000": 2}
    assert loader.counts["dropped"] == 4 and loader.counts["truncated"] == 0
    loader = Loader(records, Config(**{**base, "shuffle": False, "batch_size": 1}), ENCODER)
    with pytest.raises(ValueError, match="record 1: 33 tokens do not fit into length=8"):
        list(loader)


@pytest.mark.parametrize("pack", [True, False])
def test_data_that_are_all_too_long_do_not_hang(pack):
    config = Config(**{**vars(PLAIN), "length": 4, "too_long": "drop", "pack": pack})
    loader = Loader([{"prompt": "000", "completion": "xyz"}] * 5, config, ENCODER)
    with pytest.raises(ValueError, match="longer than length=4 and dropped: raise it"):
        take(loader, 9)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"batch_size": 0}, "config.batch_size must be at least 1"),
        ({"epochs": 0}, "config.epochs must be at least 1"),
        ({"seed": -1}, "config.seed must be at least 0"),
        ({"process_index": 2, "process_count": 2}, "config.process_index must be below"),
        ({"process_count": 2, "epochs": 1}, "config.epochs must be None when several processes"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, reason):
    with pytest.raises(ValueError, match=reason):
        Loader(make_records(3), Config(**{**vars(PLAIN), **change}), ENCODER)


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="the source is empty"):
        Loader([], PLAIN, ENCODER)


def test_grain_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "grain", None)
    with pytest.raises(ImportError, match=r"pip install 'jrl\[data\]'"):
        Loader(make_records(3), PLAIN, ENCODER)
