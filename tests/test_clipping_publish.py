"""Published results: copied whole or not at all, their tables up to date, shown by the pages."""

import importlib.util
import json
import pathlib
import shutil
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "experiments"))

from ppo_clipping import publish  # noqa: E402

from jrl.run_directory import UsageError  # noqa: E402

spec = importlib.util.spec_from_file_location("docs_results", ROOT / "docs/tools/results.py")
assert spec is not None and spec.loader is not None
shown = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shown)


def result(env, steps=2048):
    setting = {"clip_eps": None, "kl_beta": 0.0, "kl_target": 0.01, "adaptive": False}
    runs = {"none": [1.0, 2.0], "clip0.2": [3.0, 5.0]}
    return {
        "env": f"{env}-v5",
        "steps": steps,
        "seeds": [0, 1],
        "random_score": 0.0,
        "curve_steps": [steps],
        "protocol": "paper",
        "settings": [
            {"name": name, **setting, "scores": scores, "curves": [[x] for x in scores]}
            for name, scores in runs.items()
        ],
    }


def run_of(directory, *results, experiment="experiments/ppo_clipping_table.py"):
    directory.mkdir()
    config = {"experiment": experiment, "arguments": [], "values": {}}
    (directory / "config.json").write_text(json.dumps(config))
    for data in results:
        (directory / f"{data['env'].split('-')[0]}.json").write_text(json.dumps(data))
    return directory


def test_results_come_one_by_one(tmp_path):
    run, place = run_of(tmp_path / "run", result("Hopper")), tmp_path / "results"
    assert publish.publish([], place) == {} and not place.exists()
    names = ["Hopper.json", "curves.png", "scores.png", "table.csv", "table.md", "table.tex"]
    assert publish.publish([run], place) == {"ppo_clipping_table": names}
    shutil.rmtree(run)
    second = run_of(tmp_path / "run", result("Reacher"))
    publish.publish([second], place)
    text = (place / "ppo_clipping_table" / "table.md").read_text()
    assert text.startswith("2 of 7 environments (Hopper, Reacher)")
    (place / "ppo_clipping_table" / "table.md").unlink()
    publish.publish([], place)
    assert (place / "ppo_clipping_table" / "table.md").read_text() == text


def test_what_does_not_go_together_changes_nothing(tmp_path):
    place = tmp_path / "results"
    publish.publish([run_of(tmp_path / "run", result("Hopper"))], place)
    before = {path.name: path.read_bytes() for path in (place / "ppo_clipping_table").iterdir()}
    with pytest.raises(ValueError, match=r"Reacher.json: steps"):
        publish.publish([run_of(tmp_path / "other", result("Reacher", 4096))], place)
    after = {path.name: path.read_bytes() for path in (place / "ppo_clipping_table").iterdir()}
    assert before == after


def test_runs_of_something_else_are_refused(tmp_path):
    run = run_of(tmp_path / "run", experiment="experiments/ppo_cartpole.py")
    with pytest.raises(UsageError, match="is a run of 'ppo_cartpole', expected one of"):
        publish.publish([run], tmp_path / "results")


@pytest.mark.parametrize("name", publish.WRITERS)
def test_published_tables_are_those_of_the_results(name, tmp_path):
    place = publish.RESULTS / name
    if not any(place.glob("[A-Z]*.json")):
        assert not place.exists(), "tables without results"
        return
    made = publish.WRITERS[name](place, tmp_path)["files"]
    assert {path.name for path in place.iterdir() if path.suffix != ".json"} == set(made)
    for file in made:
        if file.endswith(".md"):
            assert (place / file).read_text() == (tmp_path / file).read_text(), (
                f"{file} is old: run `PYTHONPATH=experiments python -m ppo_clipping.publish`"
            )


def test_pages_show_what_is_there(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "table.md").write_text("| a |\n")
    (tmp_path / "one" / "x.png").touch()
    page = "Before\n```results\none/table.md\none/gone.md\none/x.png: Lines: up.\n```\nAfter"
    assert shown.expand(page, "../", tmp_path) == (
        "Before\n| a |\n\n![Lines: up.](../results/one/x.png)\nAfter"
    )
    assert shown.pictures(tmp_path) == {"results/one/x.png": tmp_path / "one" / "x.png"}
    assert shown.expand("```results\ntwo/table.md\n```\n", "", tmp_path) == shown.NOTHING
