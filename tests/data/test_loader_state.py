"""Resuming is exact: at every stop, over epochs, after errors, through a checkpoint."""

import json
from collections import Counter

import numpy as np
import pytest
from loading import ENCODER, PLAIN, equal, make_records, names, take

from jrl.checkpoint import Checkpointer
from jrl.data.loader import Config, Loader

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


@pytest.mark.parametrize("pack", [True, False])
def test_more_epochs_go_on_and_fewer_are_refused(pack):
    def make(epochs):
        config = Config(**{**vars(PLAIN), "pack": pack, "epochs": epochs, "batch_size": 1})
        return Loader(make_records(29), config, ENCODER)

    loader = make(2)
    first = list(loader)
    more = make(3)
    more.set_state(loader.get_state())
    assert Counter(sum(map(names, more), [])) == {f"{n:03d}": 1 for n in range(29)}
    loader = make(2)
    take(loader, len(first) - 1)
    with pytest.raises(ValueError, match="epochs=1 end before the place of the state"):
        make(1).set_state(loader.get_state())
