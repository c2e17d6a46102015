"""The loader: every record once per epoch over all processes, and resuming that is exact."""

import itertools
import json
from collections import Counter

import jax
import numpy as np
import pytest

from jrl.checkpoint import Checkpointer
from jrl.data import packing, tokens
from jrl.data.loader import Config, Loader

LENGTH = 24


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


PLAIN = Config(batch_size=3, length=LENGTH, window=8, threads=0)
VARIANTS = {
    "packed": {},
    "packed, in threads": {"threads": 3},
    "packed, one epoch": {"epochs": 1},
    "packed, process 1 of 3": {"process_index": 1, "process_count": 3},
    "padded": {"pack": False},
    "padded, three epochs": {"pack": False, "epochs": 3},
    "padded, last of 4": {"pack": False, "process_index": 3, "process_count": 4, "epochs": 2},
    "in order": {"shuffle": False},
    "dropping": {"length": 16, "too_long": "drop"},
    "truncating": {"length": 16, "too_long": "truncate", "pack": False},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def config(request):
    return Config(**{**vars(PLAIN), **request.param})


@pytest.mark.parametrize("encoder", [ENCODER, None], ids=["tokens", "records"])
def test_resuming_draws_exactly_the_next_batch(config, encoder):
    """At random stops: within a window, at its end, and beyond the end of an epoch."""
    records = make_records(29)
    loader, states, batches = Loader(records, config, encoder), [], []
    for _ in range(30):
        states.append((json.dumps(loader.get_state()), loader.counts))
        drawn = take(loader, 1)
        if not drawn:
            break
        batches += drawn
    assert len(batches) > 3
    resumed = Loader(records, config, encoder)
    # In any order, forwards and backwards, and with new loaders too.
    for stop in np.random.default_rng(0).permutation(len(states))[:12]:
        if stop % 3 == 0:
            resumed = Loader(records, config, encoder)
        state, counts = states[stop]
        resumed.set_state(json.loads(state))
        assert json.dumps(resumed.get_state()) == state and resumed.counts == counts
        expected = batches[stop : stop + 4]
        assert equal(take(resumed, len(expected) if config.epochs is None else 4), expected)


def test_a_state_does_not_change_while_drawing_goes_on():
    loader = Loader(make_records(29), PLAIN, ENCODER)
    take(loader, 2)
    state = loader.get_state()
    before = json.dumps(state)
    take(loader, 5)
    assert json.dumps(state) == before


def test_a_batch_that_is_trained_on_several_times_is_not_skipped():
    """google/tunix#2290: what was read ahead, or is still being trained on, must come again."""
    records, config = make_records(29), Config(**{**vars(PLAIN), "threads": 4})
    loader, trained = Loader(records, config, ENCODER), []
    saved = None
    for update in range(20):
        if update % 4 == 0:
            saved, batch = loader.get_state(), next(loader)
        trained.append(batch)
        if update == 13:
            break
    resumed = Loader(records, config, ENCODER)
    resumed.set_state(saved)
    assert equal(next(resumed), trained[12])


def test_epochs_keep_their_orders_over_a_resume():
    """google/tunix#2288: a resumed run drew the first epoch's order again."""
    records = make_records(40)
    config = Config(**{**vars(PLAIN), "batch_size": 8})
    whole = [record["prompt"] for batch in take(Loader(records, config), 15) for record in batch]
    epochs = [whole[n : n + 40] for n in (0, 40, 80)]
    assert all(sorted(epoch) == sorted(r["prompt"] for r in records) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    resumed = Loader(records, config)
    take(resumed, 4)
    state = resumed.get_state()
    resumed = Loader(records, config)
    resumed.set_state(state)
    rest = [record["prompt"] for batch in take(resumed, 11) for record in batch]
    assert rest == whole[32:]


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


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("threads", [0, 3])
def test_an_error_draws_nothing(pack, threads):
    """Neither do what came before the error nor what came after it get lost."""
    records = make_records(29)

    class Flaky:
        broken = True

        def __len__(self):
            return len(records)

        def __getitem__(self, index):
            if self.broken and index in (13, 21):
                raise ValueError(f"record {index} is broken")
            return records[index]

    config = Config(**{**vars(PLAIN), "pack": pack, "threads": threads, "batch_size": 4})
    expected = take(Loader(records, config, ENCODER), 12)
    source = Flaky()
    loader, batches = Loader(source, config, ENCODER), []
    while len(batches) < 12:
        before = loader.get_state()
        try:
            batches.append(next(loader))
        except ValueError:
            assert loader.get_state() == before
            with pytest.raises(ValueError, match="is broken"):
                next(loader)
            source.broken = False
    assert not source.broken and equal(batches, expected)


def test_the_state_goes_into_a_checkpoint(tmp_path):
    records = make_records(29)
    loader = Loader(records, PLAIN, ENCODER)
    take(loader, 7)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"params": {"w": np.ones(2)}}, {"data": loader.get_state()})
        restored = checkpointer.restore({"params": {"w": np.zeros(2)}})
    resumed = Loader(records, PLAIN, ENCODER)
    resumed.set_state(restored.meta["data"])
    assert equal(take(resumed, 5), take(loader, 5))


@pytest.mark.parametrize(
    ("change", "records", "name"),
    [
        ({"seed": 1}, 29, "seed=0, this loader has 1"),
        ({"shuffle": False}, 29, "shuffle=True, this loader has False"),
        ({"window": 9}, 29, "window=8"),
        ({"length": 32}, 29, "length=24"),
        ({"pack": False}, 29, "pack=True"),
        ({"too_long": "drop"}, 29, "too_long='error'"),
        ({"process_count": 2}, 29, "process_count=1"),
        ({}, 30, "records=29, this loader has 30"),
    ],
)
def test_a_state_of_other_settings_is_refused(change, records, name):
    state = Loader(make_records(29), PLAIN, ENCODER).get_state()
    other = Loader(make_records(records), Config(**{**vars(PLAIN), **change}), ENCODER)
    with pytest.raises(ValueError, match=name):
        other.set_state(state)


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
