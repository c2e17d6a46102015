"""Settings of an experiment: named ones, grids, and what is wrong with them."""

import dataclasses
import math

import numpy as np
import pytest
from flax import struct

from jrl import grid
from jrl.types import Leaf


class Hyper(struct.PyTreeNode):
    rate: Leaf = 0.1
    noise: Leaf = 1


NAMED = {"none": {}, "loud": {"noise": 9.0}}


def test_named_settings_times_a_sweep():
    points = grid.settings({"rate": (0.1, 0.2)}, NAMED)
    assert points == (
        ("none,rate=0.1", {"rate": 0.1}),
        ("none,rate=0.2", {"rate": 0.2}),
        ("loud,rate=0.1", {"noise": 9.0, "rate": 0.1}),
        ("loud,rate=0.2", {"noise": 9.0, "rate": 0.2}),
    )
    assert grid.settings({}, {}) == (("default", {}),)
    assert grid.settings({}, NAMED) == tuple(NAMED.items())


def test_labels_tell_close_values_apart():
    a, b = (label for label, _ in grid.settings({"rate": (0.1, 0.1 + 1e-9)}, {}))
    assert a == "rate=0.1" and b != a


def test_stack_repeats_every_setting_for_its_seeds():
    hps = grid.stack(grid.floats(Hyper()), grid.settings({}, NAMED), 3)
    np.testing.assert_array_equal(hps.noise, [1, 1, 1, 9, 9, 9])
    np.testing.assert_array_equal(hps.rate, np.full(6, np.float32(0.1)))


@pytest.mark.parametrize(
    ("sweep", "named", "message"),
    [
        ({"speed": (1.0,)}, {}, "sweep: no hyper-parameter 'speed', choose from rate, noise"),
        ({"rate": (1.0, 1.0)}, {}, "sweep: rate needs one or more different numbers"),
        ({"rate": (math.nan,)}, {}, "sweep: rate needs one or more different numbers"),
        ({}, {"x": {"speed": 1.0}}, "settings: x: no hyper-parameter 'speed'"),
        ({}, {"x": {"rate": math.nan}}, "settings: x: rate is not a number"),
        ({"noise": (1.0,)}, NAMED, "sweep: noise is set by the setting loud"),
    ],
)
def test_mistakes_name_the_field(sweep, named, message):
    with pytest.raises(ValueError, match=message):
        grid.check(Hyper(), sweep, named)


def test_a_hyper_that_is_not_a_number():
    with pytest.raises(ValueError, match="hyper.rate is not a number"):
        grid.check(dataclasses.replace(Hyper(), rate=math.nan), {}, {})
