"""The study of details: which runs collapse, what is written and drawn, and who is trained."""

import dataclasses
import importlib.util
import json
import math
import pathlib
import re
import sys

import jax
import numpy as np
import pytest

EXPERIMENTS = pathlib.Path(__file__).parent.parent / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

from ppo_clipping import details, figures, settings  # noqa: E402

from jrl.algos import ppo  # noqa: E402

spec = importlib.util.spec_from_file_location(
    "ppo_clipping_details", EXPERIMENTS / "ppo_clipping_details.py"
)
assert spec is not None and spec.loader is not None
runner = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = runner
spec.loader.exec_module(runner)

NAN = math.nan


def result(env, random, scores, **changes):
    """A file's content: `scores` is name -> curves [seeds, points], the rest 1 in each run."""
    return {
        "env": env,
        "steps": 4096,
        "seeds": [0, 1],
        "random_score": random,
        "curve_steps": [2048, 4096],
        "protocol": "one choice changed",
        "hours": 0.5,
        "settings": [
            {
                "name": name,
                "clip_eps": None,
                "kl_beta": 0.0,
                "kl_target": 0.01,
                "adaptive": False,
                "scores": [curve[-1] for curve in scores.get(name, [[1.0, 1.0]] * 2)],
                "curves": scores.get(name, [[1.0, 1.0]] * 2),
                "skipped": [0.0, 0.0],
                "random_score": random,
            }
            for name in details.NAMES
        ],
    } | changes


HOPPER = result(
    "Hopper-v5",
    10.0,
    {
        "as in the table: none": [[None, 300.0], [510.0, 200.0]],
        "as in the table: clip0.2": [[100.0, 1000.0], [200.0, None]],
        "as in the table: kl1": [[100.0, None], [200.0, None]],
        "epochs 20: none": [[5.0, 4.0], [8.0, 11.0]],
    },
)
CHEETAH = result("HalfCheetah-v5", -600.0, {"actions clipped: none": [[-500.0, -9e4], [1.0, 2.0]]})


def save(directory, *results):
    for data in results:
        (directory / f"{data['env'].split('-')[0]}.json").write_text(json.dumps(data))
    return directory


@pytest.mark.parametrize(
    ("curve", "random", "lost"),
    [
        ([0.0, 100.0, 49.0], 0.0, True),
        ([0.0, 100.0, 50.0], 0.0, False),
        ([NAN, -100.0, -450.0], -500.0, True),
        ([-600.0, -501.0], -500.0, True),
        ([-600.0, -500.0], -500.0, False),
        ([5.0], 5.0, False),
        ([100.0, NAN], 0.0, False),
        ([NAN, NAN], 0.0, False),
        ([NAN, 7.0], 5.0, False),
    ],
)
def test_collapsed(curve, random, lost):
    assert details.collapsed(curve, random) is lost
    assert details.collapsed(np.array(curve), random) is lost


def test_summary_of_two_files(tmp_path):
    summary = details.summarise(save(tmp_path, HOPPER, CHEETAH))
    assert list(summary["environments"].items()) == [("HalfCheetah", -600), ("Hopper", 10)]
    assert (summary["steps"], summary["seeds"], summary["hours"]) == (4096, [0, 1], 1.0)
    assert list(summary["variants"]) == [*details.VARIANTS, *details.PROGRAMS]
    hopper = summary["variants"]["as in the table"]["Hopper"]
    none, clip = {"scores": [300, 200]}, {"scores": [1000, None]}
    assert hopper["none"] == {**none, "collapsed": [False, True], "random": 10}
    assert hopper["clip0.2"] == {**clip, "collapsed": [False, False], "random": 10}
    assert summary["variants"]["epochs 20"]["Hopper"]["none"]["collapsed"] == [True, False]
    cheetah = summary["variants"]["actions clipped"]["HalfCheetah"]
    assert cheetah["none"]["collapsed"] == [True, False] and set(cheetah) == set(details.SETTINGS)
    assert "Hopper, as in the table: clip0.2, seed 1: no score" in summary["notes"][0]
    json.dumps(summary, allow_nan=False)


def test_markdown(tmp_path):
    lines = details.to_markdown(details.summarise(save(tmp_path, HOPPER))).splitlines()
    assert lines[0] == "| variant | Hopper, none | Hopper, clip0.2 | Hopper, kl1 |"
    assert lines[2] == "| as in the table | 250 (1) | 1000 | – |"
    assert "| epochs 20 | 7.5 (1) | 1 (2) | 1 (2) |" in lines
    assert len(lines) == 2 + 15 + 2 + 3 and {line.count("|") for line in lines[:17]} == {5}
    assert "Mean over 2 seeds" in lines[18] and "Random policy: Hopper 10." in lines[18]


def test_everything_is_written(tmp_path, monkeypatch):
    out = tmp_path / "out"
    summary = details.write(save(tmp_path, HOPPER, CHEETAH), out)
    assert summary["files"] == ["details.md", "details.png"]
    assert sorted(path.name for path in out.iterdir()) == summary["files"]
    assert (out / "details.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(figures, "available", lambda: False)
    assert details.write(tmp_path, tmp_path / "bare")["files"] == ["details.md"]


def test_figure(tmp_path):
    summary = details.summarise(save(tmp_path, HOPPER, CHEETAH))
    figure = figures.details(summary, details.SETTINGS)
    cheetah, hopper = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["HalfCheetah", "Hopper"]
    assert [text.get_text() for text in cheetah.get_yticklabels()] == list(summary["variants"])
    assert (cheetah.get_xscale(), hopper.get_xscale()) == ("symlog", "linear")
    assert list(hopper.lines[0].get_xdata()) == [10, 10], "the random policy"
    first, second, mean = hopper.lines[1:4]
    assert [line.get_xdata()[0] for line in (first, second, mean)] == [300, 200, 250]
    assert first.get_markerfacecolor() == first.get_color()
    assert second.get_markerfacecolor() == "none", "a ring has collapsed"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["random policy", "none", "clip 0.2", "fixed 1", "mean", "collapsed"]


def test_malformed_files_are_named(tmp_path):
    other = json.loads(json.dumps(HOPPER))
    other["settings"][0]["name"] = "none"
    cases = {
        "settings[0].name: must be one of as in the table: none,": other,
        "random_score: missing": {k: v for k, v in HOPPER.items() if k != "random_score"},
        "steps: must be a positive integer": HOPPER | {"steps": 0},
        "the file must be an object": [],
    }
    for message, data in cases.items():
        (tmp_path / "Hopper.json").write_text(json.dumps(data))
        with pytest.raises(ValueError, match=f"^Hopper.json: {re.escape(message)}"):
            details.summarise(tmp_path)
    save(tmp_path, HOPPER, CHEETAH | {"steps": 1})
    with pytest.raises(ValueError, match=r"^Hopper.json: steps: not that of HalfCheetah.json"):
        details.summarise(tmp_path)


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ValueError, match="no results"):
        details.summarise(tmp_path)
    assert list(details.summarise(save(tmp_path, HOPPER))["environments"]) == ["Hopper"]


@pytest.mark.parametrize("name", details.VARIANTS)
def test_every_variant_changes_one_number(name):
    changes = details.VARIANTS[name]
    hyper = runner.experiment.hyper
    changed = dataclasses.replace(hyper, **changes)
    fields = [field.name for field in dataclasses.fields(ppo.Hyper)]
    differ = [x for x in fields if getattr(changed, x) != getattr(hyper, x)]
    assert differ == list(changes) and len(differ) == (name != "as in the table")


def test_the_first_variant_is_the_table_s():
    config, hyper = runner.experiment.config, runner.experiment.hyper
    assert dataclasses.replace(config, normalize_reward=False) == settings.CONFIG
    assert hyper.scale_reward == 0 and hyper.replace(scale_reward=1.0) == settings.HYPER
    for changes in details.PROGRAMS.values():
        assert all(getattr(config, field) != value for field, value in changes.items())


def test_populations():
    numbers, *programs = runner.ClippingDetails(seeds=2).populations("Hopper")
    assert numbers.name == "Hopper" and numbers.plan().members == 12 * 3 * 2
    assert [x.name for x in programs] == [
        "Hopper-epochs-3",
        "Hopper-epochs-20",
        "Hopper-orthogonal-initialisation",
    ]
    assert [x.config.epochs for x in (numbers, *programs)] == [10, 3, 20, 10]
    named = [name for x in (numbers, *programs) for name in x.settings]
    assert tuple(named) == details.NAMES
    assert numbers.settings["actions clipped: kl1"] == {"kl_beta": 1.0, "clip_action": 1.0}
    assert programs[0].settings == {
        f"epochs 3: {label}": settings.SETTINGS[label] for label in details.SETTINGS
    }
    for x in programs:
        assert x.plan().members == 3 * 2


def test_the_last_program_begins_orthogonal():
    key = jax.random.key(0)
    numbers, *_, orthogonal = runner.ClippingDetails().populations("InvertedPendulum")
    for population, same in ((numbers, False), (orthogonal, True)):
        learner = population.make(population.config).init(key, population.hyper)
        kernel = learner.train.params["policy"]["layers"][1]["kernel"]
        assert np.allclose(kernel.T @ kernel, 2 * np.eye(64), atol=1e-4) is same


def test_unknown_environments_are_refused():
    with pytest.raises(ValueError, match="environments: no 'Ant'"):
        runner.ClippingDetails(environments=("Ant",)).validate()


def test_every_variant_is_judged_by_its_own_random_policy(tmp_path):
    """From -158 to -350: a loss for a narrow policy, a gain on the wide one's -640."""
    data = json.loads(json.dumps(result("HalfCheetah-v5", -640.0, {})))
    for setting in data["settings"]:
        setting["curves"], setting["scores"] = [[-158.0, -350.0]] * 2, [-350.0] * 2
        if setting["name"].startswith("initial log-std"):
            setting["random_score"] = -158.0
    (tmp_path / "HalfCheetah.json").write_text(json.dumps(data))
    summary = details.summarise(tmp_path)
    rows = {name: cells["HalfCheetah"]["none"] for name, cells in summary["variants"].items()}
    assert rows["initial log-std -1"]["collapsed"] == [True, True]
    assert rows["as in the table"]["collapsed"] == [False, False]
    text = details.to_markdown(summary)
    assert "Random policy: HalfCheetah -640; initial log-std -1: HalfCheetah -158." in text
    del data["settings"][0]["random_score"]
    (tmp_path / "HalfCheetah.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="HalfCheetah.json: as in the table: none.random_score"):
        details.summarise(tmp_path)
