"""The clipping experiment's table: arithmetic by hand, intervals, what is written and drawn."""

import csv
import io
import json
import math
import pathlib
import re
import sys

import numpy as np
import pytest
import scipy.stats

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "experiments"))

from ppo_clipping import figures, table  # noqa: E402
from ppo_clipping.results import ENVIRONMENTS, FAMILIES, PAPER, family, read  # noqa: E402


def result(env, scores, random=0.0, **changes):
    """A file's content: `scores` is name -> one for each seed."""
    seeds = len(next(iter(scores.values())))
    settings = [
        {
            "name": name,
            "clip_eps": float(name[4:]) if name.startswith("clip") else None,
            "kl_beta": 1.0,
            "kl_target": 0.01,
            "adaptive": name.startswith("akl"),
            "scores": each,
            "curves": [[None, 0.5 * (x or 0), x] for x in each],
            "skipped": [0.0] * seeds,
        }
        for name, each in scores.items()
    ]
    data = {
        "env": env,
        "steps": 6144,
        "seeds": list(range(seeds)),
        "random_score": random,
        "settings": settings,
        "curve_steps": [2048, 4096, 6144],
        "protocol": "paper",
    }
    return data | changes


def save(directory, *results):
    for data in results:
        (directory / f"{data['env'].split('-')[0]}.json").write_text(json.dumps(data))
    return directory


TWO = (
    result("Hopper-v5", {"none": [10.0, 20.0], "clip0.2": [60.0, 110.0]}, random=10.0),
    result("HalfCheetah-v5", {"none": [-300.0, -100.0], "clip0.2": [100.0, 300.0]}, random=-100.0),
)
"""Normalised: Hopper 0, .1 and .5, 1; HalfCheetah -.5, 0 and .5, 1."""


def whole(random=-2.0, seeds=3):
    """All eleven settings in all environments."""
    rng = np.random.default_rng(0)
    return [
        result(
            f"{env}-v5",
            {n: [100 * (x.score + 0.05 * z) for z in rng.normal(size=seeds)] for n, x in P},
            random,
        )
        for env in ENVIRONMENTS
    ]


P = list(PAPER.items())


def test_normalised_by_hand(tmp_path):
    summary = table.summarise(read(save(tmp_path, *TWO)))
    assert summary["environments"] == ["HalfCheetah", "Hopper"], "the paper's order"
    none, clip = summary["settings"]["none"], summary["settings"]["clip0.2"]
    assert none["ours"] == pytest.approx((-0.5 + 0 + 0 + 0.1) / 4)
    assert clip["ours"] == pytest.approx((0.5 + 1 + 0.5 + 1) / 4)
    assert (none["rank"], clip["rank"], clip["paper_rank"]) == (2, 1, 1)
    assert summary["gap"] == pytest.approx(0.85) and summary["spearman"] == pytest.approx(1)
    raw = summary["raw"]["HalfCheetah"]
    assert raw["random"] == -100 and raw["best"] == 300 and raw["means"]["none"] == -200
    assert raw["scores"]["clip0.2"] == [100, 300]


def test_intervals_are_repeatable_and_stratified(tmp_path):
    results = read(save(tmp_path, *TWO))
    first, second = (table.summarise(results)["settings"]["clip0.2"] for _ in range(2))
    assert first["interval"] == second["interval"] == [0.5, 1.0]
    runs = np.array([[0.0] * 5, [1.0] * 5])
    assert set(table.bootstrap(runs, np.random.default_rng(0), 100)) == {0.5}


def test_bootstrap_covers_the_mean():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(300):
        runs = rng.normal([[0.0], [1.0], [5.0]], 1.0, (3, 20))
        low, high = np.quantile(table.bootstrap(runs, rng, 400), [0.025, 0.975])
        covered += low < 2 < high
    assert 0.89 < covered / 300 < 0.98


def test_bootstrap_is_scipys_for_one_environment():
    x = np.random.default_rng(0).normal(5, 2, 20)
    ours = table.bootstrap(x[None], np.random.default_rng(0), 20_000)
    theirs = scipy.stats.bootstrap(
        (x,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    np.testing.assert_allclose(np.quantile(ours, [0.025, 0.975]), theirs, atol=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_spearman_is_scipys(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 5, 11), rng.normal(size=11)
    assert table.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)


def test_spearman_of_a_constant_is_nan():
    assert math.isnan(table.spearman([1, 1, 1], [1, 2, 3])) and math.isnan(table.spearman([1], [2]))


def test_missing_runs_count_as_the_worst_and_are_named(tmp_path):
    hopper = result("Hopper-v5", {"none": [60.0, None], "clip0.2": [20.0, 110.0]}, random=10.0)
    summary = table.summarise(read(save(tmp_path, hopper, TWO[1])))
    assert summary["settings"]["none"]["ours"] == pytest.approx((-0.25 + (0.5 + 0.1) / 2) / 2)
    assert summary["raw"]["Hopper"]["scores"]["none"] == [60, None]
    assert "Hopper, none, seed 1: no score, counted as the worst run there." in summary["notes"]
    assert "counted as the worst run there" in table.to_markdown(summary)


def test_a_setting_that_diverged_altogether_is_the_worst(tmp_path):
    hopper = result("Hopper-v5", {"none": [None, None], "clip0.2": [60.0, 110.0]}, random=10.0)
    summary = table.write(save(tmp_path, hopper, TWO[1]), tmp_path)
    assert summary["settings"]["none"]["ours"] == pytest.approx((-0.25 + 0.5) / 2)
    json.dumps(summary, allow_nan=False)


def test_an_environment_without_any_score_is_left_out(tmp_path):
    hopper = result("Hopper-v5", {"none": [None, None], "clip0.2": [None, None]}, random=10.0)
    summary = table.write(save(tmp_path, hopper, TWO[1]), tmp_path)
    assert summary["left_out"] == ["Hopper"]
    assert summary["settings"]["none"]["ours"] == pytest.approx(-0.25)
    json.dumps(summary, allow_nan=False)


def test_an_environment_that_nothing_learned_is_left_out(tmp_path):
    hopper = result("Hopper-v5", {"none": [1.0, None], "clip0.2": [2.0, 3.0]}, random=10.0)
    summary = table.write(save(tmp_path, hopper, TWO[1]), tmp_path)
    assert summary["left_out"] == ["Hopper"]
    assert summary["settings"]["clip0.2"]["ours"] == pytest.approx(0.75)
    (tmp_path / "HalfCheetah.json").unlink()
    assert table.write(tmp_path, tmp_path)["settings"]["clip0.2"]["ours"] is None


def test_bars_of_the_whole_table(tmp_path):
    summary = table.summarise(read(save(tmp_path, *whole())))
    assert [reached for _, _, reached in summary["bars"].values()] == [True] * 4
    assert summary["bars"]["rank of clip0.2"] == (1, 3, True)
    assert summary["bars"]["rank correlation with the paper"] == (summary["spearman"], 0.5, True)
    assert summary["bars"]["clip0.2 minus none"] == (summary["gap"], 0.3, True)
    low, high = summary["gap_interval"]
    assert low < summary["gap"] < high
    assert summary["coverage"].startswith("7 of 7 environments (HalfCheetah, Hopper,")
    assert "3 seeds, 6,144 steps each" in summary["coverage"]


def test_bars_that_are_missed(tmp_path):
    text = (
        json.dumps(TWO[0]).replace("none", "x").replace("clip0.2", "none").replace("x", "clip0.2")
    )
    summary = table.summarise(read(save(tmp_path, json.loads(text))))
    gap = pytest.approx((15 - 85) / 100)
    assert summary["bars"] == {
        "settings below none": (1, 0, False),
        "clip0.2 minus none": (gap, 0.3, False),
    }
    assert "- settings below none: 1 (at most 0: missed)" in table.to_markdown(summary)


@pytest.mark.parametrize(("rank", "reached"), [(3, True), (4, False)])
def test_clip_is_among_the_best_three(rank, reached, tmp_path):
    names = [name for name in PAPER if name != "clip0.2"]
    scores = {name: [float(i)] for i, name in enumerate(names)} | {"clip0.2": [10.5 - rank]}
    bars = table.summarise(read(save(tmp_path, result("Hopper-v5", scores))))["bars"]
    assert bars["rank of clip0.2"] == (rank, 3, reached)


def test_raw_scores_are_held_against_published_ones(tmp_path):
    million = [data | {"steps": 1_001_472} for data in whole()]
    million[4]["settings"][2]["scores"] = [-6.0, -7.0, None]
    summary = table.summarise(read(save(tmp_path, *million)))
    raw = {name: x for name, x in summary["bars"].items() if name.endswith(", clip0.2")}
    assert list(raw) == [f"{name}, clip0.2" for name in ENVIRONMENTS]
    assert raw["Reacher, clip0.2"] == (-6.5, -7, True)
    value, bar, reached = raw["Walker2d, clip0.2"]
    assert value == summary["raw"]["Walker2d"]["means"]["clip0.2"] and (bar, reached) == (
        1200,
        False,
    )
    text = table.to_markdown(summary)
    assert "- Reacher, clip0.2: -6.50 (at least -7: reached)" in text
    assert f"- Walker2d, clip0.2: {value:.0f} (at least 1200: missed)" in text


def test_partial_results_say_so(tmp_path):
    save(tmp_path, *TWO)
    (tmp_path / "summary.json").write_text("someone else's")
    text = table.to_markdown(table.write(tmp_path, tmp_path / "new" / "place"))
    assert text.startswith(
        "2 of 7 environments (HalfCheetah, Hopper), 2 of 11 settings, 2 seeds, 6,144 steps each.\n"
    )
    assert "for all 7 environments" in text and "too narrow" in text
    single = [result("Reacher-v5", {"none": [-9.5], "clip0.2": [-5.25]}, random=-43.0)]
    (tmp_path / "one").mkdir()
    summary = table.summarise(read(save(tmp_path / "one", *single)))
    assert "1 seed," in summary["coverage"] and summary["settings"]["none"]["interval"] is None
    assert "| no clipping or penalty | -9.50 |" in table.to_markdown(summary)


def test_markdown(tmp_path):
    lines = table.to_markdown(table.summarise(read(save(tmp_path, *TWO)))).splitlines()
    assert "| no clipping or penalty | -0.39 | -0.10 | -0.25 to 0.05 | 2 | 2 |" in lines
    assert "| clipping, ε = 0.2 | 0.82 | 0.75 | 0.50 to 1.00 | 1 | 1 |" in lines
    assert "| setting | HalfCheetah | Hopper |" in lines
    assert "| random policy | -100.0 | 10.0 |" in lines
    assert any("| -200.0 (-300.0, -100.0) | 15.0 (10.0, 20.0) |" in line for line in lines)


def test_csv_comes_back(tmp_path):
    summary = table.summarise(read(save(tmp_path, *whole())))
    rows = list(csv.DictReader(io.StringIO(table.to_csv(summary))))
    assert [row["setting"] for row in rows] == ["random", *PAPER]
    for row in rows[1:]:
        setting = summary["settings"][row["setting"]]
        assert float(row["ours"]) == setting["ours"] and float(row["paper"]) == setting["paper"]
        assert [float(row["low"]), float(row["high"])] == setting["interval"]
        scores = summary["raw"]["Walker2d"]["scores"][row["setting"]]
        assert [float(row[f"Walker2d seed {seed}"]) for seed in range(3)] == scores
    assert float(rows[0]["Hopper seed 2"]) == -2


def test_latex_is_well_formed(tmp_path):
    text = table.to_latex(table.summarise(read(save(tmp_path, *whole()))))
    opened, closed = (re.findall(rf"\\{x}{{(\w+)}}", text) for x in ("begin", "end"))
    assert opened == closed[::-1] == ["table", "tabular"]
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 12 and all(row.count("&") == 3 for row in rows)
    assert text.count("{") == text.count("}") and text.count("$") % 2 == 0
    assert "$-0.39$" in text and r"$\epsilon$ = 0.2" in text and text.isascii()
    assert not re.search(r"(?<!\\)%", text)


BAD = {
    "not JSON": ("{", "not JSON"),
    "a list": ([], "the file must be an object"),
    "no seeds": ({"seeds": None}, "seeds: must be a list of integers"),
    "twice a seed": ({"seeds": [0, 0]}, "seeds: must differ"),
    "one score": ({"seeds": [0]}, "none.scores: must be a list of 1 numbers"),
    "unknown": ({"env": "Ant-v5"}, "env: 'Ant-v5' is not in the paper's Table 1"),
    "steps": ({"steps": 0.5}, "steps: must be a positive integer"),
    "random": ({"random_score": None}, "random_score: must be a number"),
    "text": ({"random_score": "1"}, "random_score: must be finite numbers or null, got '1'"),
    "no settings": ({"settings": []}, "settings: must be a list with at least one"),
    "empty setting": ({"settings": [{}]}, "settings[0].name: missing"),
    "curve steps": ({"curve_steps": [1, 2]}, "none.curves[0]: must be a list of 2 numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_files_are_named_in_one_line(case, tmp_path):
    changes, message = BAD[case]
    data = TWO[0] | changes if isinstance(changes, dict) else changes
    text = data if isinstance(data, str) else json.dumps(data)
    (tmp_path / "Hopper.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"Hopper.json: {message}")) as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["name", "scores", "curves", "kl_beta"])
def test_missing_fields_of_a_setting(field, tmp_path):
    broken = json.loads(json.dumps(TWO[0]))
    del broken["settings"][1][field]
    with pytest.raises(ValueError, match=rf"Hopper.json: settings\[1\].{field}: missing"):
        read(save(tmp_path, broken))


def test_settings_are_known_and_single(tmp_path):
    for name, message in {"clip9": "must be one of none,", "none": "none comes twice"}.items():
        broken = json.loads(json.dumps(TWO[0]))
        broken["settings"][1]["name"] = name
        with pytest.raises(ValueError, match=rf"Hopper.json: settings\[1\].name: {message}"):
            read(save(tmp_path, broken))
    broken = json.loads(json.dumps(TWO[0]).replace("110.0", "Infinity"))
    with pytest.raises(ValueError, match=r"clip0.2.scores: must be finite numbers or null"):
        read(save(tmp_path, broken))


@pytest.mark.parametrize("field", ["steps", "seeds", "protocol", "settings"])
def test_files_that_do_not_belong_together(field, tmp_path):
    other = {"steps": 1, "seeds": [5, 6], "protocol": "not the paper's"}
    other = TWO[1] | {field: other.get(field, TWO[1]["settings"][:1])}
    with pytest.raises(ValueError, match=f"^Hopper.json: {field}: not th.* of HalfCheetah.json$"):
        read(save(tmp_path, TWO[0], other))


def test_an_environment_comes_once(tmp_path):
    (tmp_path / "Copy.json").write_text(json.dumps(TWO[0]))
    with pytest.raises(ValueError, match=r"Hopper.json: env: Hopper is also in Copy.json"):
        read(save(tmp_path, TWO[0]))
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="^none: no results"):
        read(tmp_path / "none")


def test_what_is_odd_becomes_a_note(tmp_path):
    data = json.loads(json.dumps(TWO[0])) | {"git_commit": "abc"}
    data["settings"][0]["skipped"] = [0.0, 0.25]
    other = "not the paper's: 4 environments"
    notes = read(save(tmp_path, data | {"protocol": other}, TWO[1] | {"protocol": other})).notes
    assert notes == (
        "Protocol: not the paper's: 4 environments.",
        "The environments were not all run with the same git commit.",
        "Hopper, none: 0, 25 % of the updates skipped, not finite.",
    )


def test_everything_is_written_whole(tmp_path):
    summary = table.write(save(tmp_path, *whole()), tmp_path / "out")
    names = ["curves.png", "scores.png", "table.csv", "table.md", "table.tex"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names == sorted(summary["files"])
    for name in names[:2]:
        picture = (tmp_path / "out" / name).read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) < 300_000
    json.dumps(summary, allow_nan=False)


def test_without_matplotlib_there_are_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "available", lambda: False)
    summary = table.write(save(tmp_path, *TWO), tmp_path / "out")
    assert summary["files"] == ["table.md", "table.csv", "table.tex"]
    assert "jrl[plots]" in summary["figures"]


def test_scores_in_a_line(tmp_path):
    summary = table.write(save(tmp_path, *whole()), tmp_path)
    first, ours = summary["scores"].split(", ")[0], summary["settings"]["none"]["ours"]
    assert first == f"none {ours:.2f} (-0.39)" and summary["scores"].count(",") == 10


def test_bar_chart(tmp_path):
    summary = table.summarise(read(save(tmp_path, *whole())))
    (axes,) = figures.scores(summary).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == [x.short for _, x in P]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["paper", "ours"]
    heights = np.reshape([bar.get_height() for bar in axes.patches], (2, 11))
    np.testing.assert_allclose(heights[0], [x.score for _, x in P])
    np.testing.assert_allclose(heights[1], [x["ours"] for x in summary["settings"].values()])


def test_learning_curves(tmp_path):
    figure = figures.curves(read(save(tmp_path, *whole())), "")
    assert len(figure.axes) == 7 * 3
    assert [axes.get_title() for axes in figure.axes[:3]] == list(FAMILIES.values())[1:]
    labels = [line.get_label() for line in figure.axes[1].lines]
    assert labels == ["random policy", "none", "adaptive 0.003", "adaptive 0.01", "adaptive 0.03"]
    legend = [text.get_text().strip() for text in figure.legends[0].get_texts()]
    assert legend[:5] == ["random policy", "none", "", "", "clip 0.1"] and len(legend) == 4 * 4
    assert set(legend) == {"random policy", "", *(x.short.replace("\n", " ") for _, x in P)}
    steps, values = figure.axes[0].lines[3].get_data()
    assert steps.tolist() == [4096, 6144], "no point where no episode had ended"
    assert values[1] == pytest.approx(np.median(whole()[0]["settings"][2]["scores"]))


def test_a_collapse_does_not_flatten_the_others(tmp_path):
    data = result("Hopper-v5", {"none": [-1e6], "clip0.1": [None], "clip0.2": [100.0]})
    axes = figures.curves(read(save(tmp_path, data)), "").axes[0]
    assert axes.get_ylim()[0] > -100 and axes.texts[0].get_text() == "none: down to -1,000,000"


def test_families_partition_the_settings():
    assert [family(name) for name in PAPER] == ["none"] + ["clip"] * 3 + ["akl"] * 3 + ["kl"] * 4
    assert all(family(name) in FAMILIES for name in PAPER)
