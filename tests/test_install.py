"""What an installation promises: a light import, extras that exist, one pin for each package."""

import json
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = (
    "brax",
    "grain",
    "gymnasium",
    "gymnax",
    "matplotlib",
    "mujoco",
    "orbax",
    "pandas",
    "rich",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "tokenizers",
    "torch",
    "transformers",
    "tyro",
    "wandb",
)


def python(code):
    """Runs `code` in a new interpreter and returns its JSON."""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_import_is_light():
    """The best of three: what is measured is the package, not the machine's other work."""
    code = """
import json, sys, time
import jax, flax, optax
have = set(sys.modules)
began = time.perf_counter()
import jrl
seconds = time.perf_counter() - began
print(json.dumps([seconds, sorted({name.split('.')[0] for name in set(sys.modules) - have})]))
"""
    runs = [python(code) for _ in range(3)]
    new = set(runs[0][1])
    assert not new & set(EXTRAS), f"import jrl imports {sorted(new & set(EXTRAS))}"
    assert min(seconds for seconds, _ in runs) < 1.0


def test_every_module_for_arrays_imports_no_extra():
    """Nor does any module below the command line; `cli` and its neighbours may need theirs."""
    names = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "jrl").rglob("*.py")
    )
    drivers = {"__main__", "cli", "experiment", "generate", "grid", "plot", "streams", "video"}
    names = [name for name in names if not drivers & set(name.split(".")[1:2])]
    loaded = python(
        "import importlib, json, sys\nimport jax, flax, optax\nhave = set(sys.modules)\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - have})))"
    )
    assert not set(loaded) & set(EXTRAS), sorted(set(loaded) & set(EXTRAS))


def test_imports_where_no_extra_is_installed():
    """Every extra hidden that flax itself does without: the package and PPO still work."""
    code = f"""
import json, sys
import jax, flax, optax
for name in set({EXTRAS}) - set(sys.modules): sys.modules[name] = None
import jrl
from jrl.algos import ppo
from jrl.envs import cartpole
config = ppo.Config(num_envs=2, num_steps=2, minibatches=2, hidden=(4,))
algorithm = ppo.make(cartpole.make(), config)
state = jax.eval_shape(algorithm.init, jax.random.key(0), ppo.Hyper())
print(json.dumps(len(jax.tree.leaves(state))))
"""
    assert python(code) > 10


def test_the_extras_exist():
    extras = PROJECT["optional-dependencies"]
    assert {"mujoco", "lm", "data", "plots", "envs", "gpu", "tpu", "all", "docs", "dev"} <= set(
        extras
    )
    inside = set(re.search(r"jrl\[(.*)\]", extras["all"][0])[1].split(","))
    assert {"mujoco", "lm", "data", "plots", "envs"} <= inside


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_constraints_are_names_and_versions():
    form = re.compile(r'[a-z0-9-]+==[0-9a-z.]+( ; python_version (<|>=) "3\.12")?')
    odd = [line for line in pins() if not form.fullmatch(line)]
    assert not odd, f"only name==version: {odd}"
    assert len(set(pins())) == len(pins())


def test_constraints_cover_what_is_required():
    pinned = {re.split("==", line)[0] for line in pins()}
    wanted = [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]
    names = {re.split(r"[\[>=<]", line)[0].lower() for line in wanted} - {"jrl"}
    assert names <= pinned, f"pin {sorted(names - pinned)} in constraints.txt"


@pytest.mark.parametrize("file", ["pyproject.toml", "constraints.txt", "Makefile", ".ci/run"])
def test_no_file_names_a_registry(file):
    text = (ROOT / file).read_text()
    assert not re.search(r"https?://|index.url|find-links", text), file
