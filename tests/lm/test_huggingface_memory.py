"""What a folder costs the host: never a second copy of the model."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CHILD = """
import json, pathlib, re, sys
import jax, jax.numpy as jnp
from jrl.lm import huggingface
from jrl.lm.config import Config
from jrl.lm.transformer import make

def memory(name):
    # Not getrusage, whose peak begins with that of the process that started this one.
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{name}:\\s+(\\d+) kB", status)[1])

config = Config(16_000, 12, 512, num_heads=8, num_kv_heads=4, head_dim=64, mlp_width=2048)
what, folder = sys.argv[1], pathlib.Path(sys.argv[2])
tiny = Config(num_layers=1)
shapes = jax.eval_shape(make(tiny).init, jax.random.key(0))
full = lambda shapes: jax.tree.map(lambda x: jnp.full(x.shape, 0.5), shapes)
# Whatever is imported or compiled on the way is there before anything is counted.
huggingface.save(folder / f"tiny_{what}", tiny, full(shapes))
huggingface.load(folder / f"tiny_{what}")
shapes = jax.eval_shape(make(config).init, jax.random.key(0))
if what == "save":
    params = full(shapes)
    jax.block_until_ready(params)
before = memory("VmRSS")
if what == "save":
    huggingface.save(folder / "model", config, params)
else:
    _, params = huggingface.load(folder / "model")
peak = memory("VmHWM") - before
sizes = [x.size * 4 for x in jax.tree.leaves(shapes)]
assert all(float(x.ravel()[-1]) == 0.5 for x in jax.tree.leaves(params))
print(json.dumps([peak, sum(sizes)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_host_never_holds_the_model_twice(tmp_path):
    def measure(what):
        result = subprocess.run(
            [sys.executable, "-c", CHILD, what, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=600,
            cwd=ROOT,
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    peak, model = measure("save")
    print(f"save: {peak / 1e6:.0f} MB more for a model of {model / 1e6:.0f} MB")
    assert model > 200e6 and peak < 0.3 * model
    peak, model = measure("load")
    print(f"load: {peak / 1e6:.0f} MB for a model of {model / 1e6:.0f} MB")
    assert 0.9 * model < peak < 1.3 * model
