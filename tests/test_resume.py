"""Killed and resumed runs end, bit for bit, where an undisturbed one does."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import CACHE
from test_cli import TINY
from test_run_directory import events

from jrl import cli
from jrl.checkpoint import Checkpointer
from jrl.run_directory import RunDirectory

PPO = '''
"""PPO on CartPole, tiny."""
from jrl.algos import ppo
from jrl.envs import cartpole
from jrl.experiment import Experiment


def make(config):
    return ppo.make(cartpole.make(), config)


experiment = Experiment(
    name="ppo",
    make=make,
    config=ppo.Config(
        num_envs=4, num_steps=32, minibatches=2, epochs=2, hidden=(16,), eval_episodes=4
    ),
    hyper=ppo.Hyper(learning_rate=1e-3, anneal=1.0),
    steps=128 * 24,
    seeds=2,
    sweep={"clip_eps": (0.1, 0.3)},
    points=12,
    checkpoint_every=1,
)
'''

SLOW = ("--config.sleep", "0.01")


@pytest.fixture
def here(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY.lstrip())
    (tmp_path / "ppo.py").write_text(PPO.lstrip())
    return tmp_path


def start(here, *arguments):
    """Starts `jrl` in a process of its own, with two devices and the tests' compiled programs."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(CACHE)),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-c", "from jrl.cli import main; main()", *arguments],
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(here, *arguments):
    process = start(here, *arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return out


def start_and_wait(here, parts, *arguments):
    """Starts a run and returns it once `parts` parts are done, all but the last surely saved."""
    process = start(here, *arguments)
    while parts:
        line = process.stdout.readline()
        assert line, process.communicate()
        parts -= line.startswith("step ")
    return process


def metrics(directory: pathlib.Path):
    return (directory / "metrics.jsonl").read_text()


def arrays(directory: pathlib.Path):
    with Checkpointer(directory / "checkpoints") as checkpointer:
        restored = checkpointer.restore({"params": None, "state": None})
    assert restored.step == json.loads((directory / "config.json").read_text())["values"]["points"]
    return restored.items


def assert_same_run(a: pathlib.Path, b: pathlib.Path):
    """Compares every measured number, every bit of the final state, and the results."""
    assert metrics(a) == metrics(b)
    x, y = arrays(a), arrays(b)
    for item in x:
        assert x[item].keys() == y[item].keys() and x[item]
        for name in x[item]:
            np.testing.assert_array_equal(x[item][name], y[item][name], err_msg=name)
    first, second = (json.loads((p / "summary.json").read_text()) for p in (a, b))
    assert first["settings"] == second["settings"]
    assert events(a / "tensorboard") == events(b / "tensorboard")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of an undisturbed run."""
    directory = tmp_path_factory.mktemp("whole")
    (directory / "tiny.py").write_text(TINY.lstrip())
    run(directory, "run", "tiny.py", "--directory", "whole", *SLOW)
    return directory / "whole"


def test_a_run_killed_again_and_again_is_bitwise_the_same(here, whole):
    rng = random.Random(0)
    for _ in range(2):
        process = start_and_wait(
            here, 2, "run", "tiny.py", "--directory", "half", "--resume", *SLOW
        )
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert 0 < metrics(here / "half").count("\n") < metrics(whole).count("\n")
        assert not (here / "half" / "summary.json").exists()
    assert "going on from step" in run(here, "resume", "half")
    assert_same_run(whole, here / "half")


@pytest.mark.slow
def test_ppo_killed_and_resumed_is_bitwise_the_same(here):
    run(here, "run", "ppo.py", "--directory", "whole")
    process = start_and_wait(here, 3, "run", "ppo.py", "--directory", "half")
    process.kill()
    process.communicate()
    done = metrics(here / "half").count("\n")
    assert 0 < done < metrics(here / "whole").count("\n")
    assert "going on from step" in run(here, "resume", "half")
    assert_same_run(here / "whole", here / "half")


def test_sigterm_saves_and_says_how_to_go_on(here, whole):
    process = start_and_wait(here, 1, "run", "tiny.py", "--directory", "half", *SLOW)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == ""
    last = out.splitlines()[-1]
    assert last.startswith("stopped and saved at step ") and last.endswith("`jrl resume half`")
    step = int(last.split()[5].replace(",", ""))
    assert step < 320 and RunDirectory(here / "half").state() == f"stopped at step {step}"
    assert f"going on from step {step}" in run(here, "resume", "half")
    assert_same_run(whole, here / "half")


def test_ctrl_c_is_treated_the_same(here):
    process = start_and_wait(here, 1, "run", "tiny.py", *SLOW)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == "" and "`jrl resume runs/tiny`" in out


LONG = ("--config.sleep", "0.4", "--checkpoint-every", "4")
"""Parts of 16 iterations, 0.4 seconds each: what waits for the end of one is noticed."""


def interrupt(process):
    """Sends a signal in the middle of a part; returns the answer and how long it took."""
    time.sleep(1)
    began = time.perf_counter()
    process.send_signal(signal.SIGINT)
    line = process.stdout.readline()
    return line, time.perf_counter() - began


def test_a_signal_is_acknowledged_at_once_and_the_part_saved(here):
    process = start_and_wait(here, 1, "run", "tiny.py", *LONG)
    line, seconds = interrupt(process)
    assert line == "stopping after this part; again to stop now\n" and seconds < 1
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == ""
    assert "stopped and saved at step 256 of 320" in out
    assert {p.name for p in (here / "runs/tiny/checkpoints").iterdir()} == {"4", "8"}


def test_a_second_signal_stops_at_once_and_leaves_the_last_checkpoint(here):
    process = start_and_wait(here, 1, "run", "tiny.py", "--directory", "half", *LONG)
    interrupt(process)
    began = time.perf_counter()
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert time.perf_counter() - began < 2
    assert process.returncode == 130
    assert err == "jrl: error: stopped at once: go on with `jrl resume half`\n"
    with Checkpointer(here / "half" / "checkpoints") as checkpointer:
        assert checkpointer.restore({"params": None, "state": None}).step == 4
    assert not RunDirectory(here / "half").summary_file.exists()


@pytest.fixture
def half(here, whole):
    """A finished run that does not know it."""
    shutil.copytree(whole, here / "half")
    (here / "half" / "summary.json").unlink()
    return here / "half"


def destroy(step: pathlib.Path):
    for file in step.rglob("d/*"):
        file.write_bytes(bytes(255 - byte for byte in file.read_bytes()))


def test_a_corrupt_checkpoint_costs_one_part_only(here, half, whole):
    destroy(half / "checkpoints" / "10")
    out = run(here, "resume", "half")
    assert "warning: step 10 is corrupt" in out and "going on from step 256" in out
    assert_same_run(whole, half)


def test_nothing_but_corrupt_checkpoints_is_one_line(here, half):
    before = metrics(half)
    for step in ("8", "10"):
        destroy(half / "checkpoints" / step)
    process = start(here, "resume", "half")
    _, err = process.communicate(timeout=60)
    lines = [line for line in err.splitlines() if line.startswith("jrl: error: ")]
    assert process.returncode == 1 and len(lines) == 1
    assert "step 10 is corrupt" in lines[0] and "step 8 is corrupt" in lines[0]
    assert metrics(half) == before


def test_a_run_in_progress_is_left_alone(half, capsys):
    with RunDirectory(half).lock(), pytest.raises(SystemExit) as stop:
        cli.main(["resume", str(half)])
    assert stop.value.code == 2
    assert "is in use: another process is running it" in capsys.readouterr().err
