"""How long does one whole step of GRPO take, sampling and scoring included, against TRL's trainer?

Both begin with the same folder: 4 layers, width 256, Llama's architecture, 259 tokens, random
weights. A step samples 8 answers of 128 tokens to each of 2 prompts of 32 tokens, at temperature 1
from all tokens, scores them by their share of vowels, and makes one update of AdamW (clipped at
1, learning rate .001) from all of them: one epoch, no KL penalty, float32. Every answer has its
full length: ours because no token is given that ends one, TRL's because `min_new_tokens` forbids
that token. TRL keeps its activations (`gradient_checkpointing=False`), because it is faster so.

- jrl: the defaults. Old log-probabilities are those of the trainer, computed before the update.
- jrl, sampler's: `recompute=False` takes those of the sampler. It computes what TRL does, which
  needs none where a batch is used once.
- TRL with 1 and with 2 threads. The faster one counts.

TRL needs an environment of its own, with trl 1.16:

    python -m benchmarks.lm_grpo_step --peer-python PYTHON [--quick] [--repeats 5]

`--gpu` measures jrl alone, with a model of Qwen2.5-0.5B's shape that samples and computes in
bfloat16; the parameters that AdamW changes are float32.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks.common import Options, in_turn, quiet_share, save, show, summary
from benchmarks.lm_parts import QWEN, small, versions
from benchmarks.lm_peers import vowels
from jrl import tree
from jrl.algos import grpo
from jrl.data import loader
from jrl.lm import sampler
from jrl.lm.config import Config
from jrl.lm.policy import Frozen, Policy
from jrl.lm.requests import Settings
from jrl.lm.rewards.scorer import Scorer
from jrl.streams.answers import Answers
from jrl.streams.answers import Config as Batches
from jrl.streams.asking import Asker
from jrl.streams.models import Model, Opened, open_model, saver

PARTS = ("sampling, scoring", "columns", "update")


@dataclasses.dataclass
class LmGrpoStep(Options):
    """Options of this benchmark; sizes are those of TRL's step unless `gpu` is set."""

    peer_python: pathlib.Path | None = None
    """Python of an environment with TRL; None leaves its rows out."""
    threads: tuple[int, ...] = (1, os.cpu_count() or 1)
    """Of TRL, a row for each; on a busy machine more than one is far slower than one."""
    prompts: int = 2
    """Prompts of a step."""
    answers: int = 8
    """Answers to each."""
    new: int = 128
    """Tokens of each."""
    gpu: bool = False
    """Measure jrl alone in bfloat16 with the model of `sizes`."""
    sizes: Config = QWEN
    """Of the model of `gpu`."""


def texts() -> list[str]:
    """Returns prompts of 31 letters, which are 32 tokens with their beginning of sequence."""
    letters = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, (64, 31), np.uint8)
    return [bytes(row).decode() for row in letters]


def computed_in(options: LmGrpoStep) -> str:
    """Returns the dtype that the model samples and computes in."""
    return "bfloat16" if options.gpu else "float32"


def step(opened: Opened, options: LmGrpoStep, asker: Asker, recompute: bool) -> Callable[[], list]:
    """Returns a call that makes one step, waits for it, and tells the seconds of its parts."""
    new, dtype = options.new, computed_in(options)
    size, lengths = options.answers, (32 + new,)
    config = grpo.Config(
        updates=10**6,
        group_size=size,
        max_new_tokens=new,
        recompute=recompute,
        microbatches=max(1, options.prompts * size // 16),
        compute_dtype=dtype,
    )
    hp = grpo.Hyper(learning_rate=1e-3)
    records = loader.Loader([{"prompt": x} for x in texts()], loader.Config(options.prompts))
    batches = Batches(prompts=options.prompts, lengths=lengths)
    key = jax.random.key(1)
    stream = Answers(records, asker, batches, size, Settings(new), key)
    updater = grpo.make(Policy(opened.model), config)
    prepare, update = jax.jit(updater.prepare), jax.jit(updater.update, donate_argnums=0)
    states = [updater.init(jax.random.key(2), opened.params, Frozen(), hp)]
    number = iter(range(10**6))

    def one():
        clocks = [time.perf_counter()]
        drawn = stream.draw(lambda: tree.cast(states[0].params, dtype), next(number))
        clocks.append(time.perf_counter())
        columns, _ = jax.block_until_ready(prepare(states[0], drawn.batch, hp))
        clocks.append(time.perf_counter())
        states[0], _ = jax.block_until_ready(update(states[0], columns, hp))
        clocks.append(time.perf_counter())
        assert drawn.batch.text.mask.sum() == options.prompts * size * new
        return np.diff(clocks).tolist()

    return one


@contextlib.contextmanager
def trl(folder: str, threads: int, options: LmGrpoStep) -> Iterator[Callable]:
    """Starts TRL's process; yields a call for its answers, the first of which are versions."""
    asked = {
        "threads": threads,
        "prompts": texts(),
        "answers": options.answers,
        "new_tokens": options.new,
        "batch": options.prompts,
    }
    script = pathlib.Path(__file__).with_name("lm_peers.py")
    process = subprocess.Popen(
        [str(options.peer_python), str(script), folder, json.dumps(asked)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    started = False

    def ask() -> dict:
        nonlocal started
        if started:
            process.stdin.write("\n")
            process.stdin.flush()
        started = True
        if line := process.stdout.readline():
            return json.loads(line)
        raise RuntimeError("TRL ended: run benchmarks/lm_peers.py by hand to see why")

    try:
        yield ask
    finally:
        process.stdin.close()
        process.wait()


def measure(options: LmGrpoStep) -> dict:
    """Times all rows in turn; returns what is saved."""
    dtype = computed_in(options)
    sizes = options.sizes if options.gpu else small(259)
    opened = open_model(Model(sizes=sizes), jax.random.key(0))
    slots, length = options.prompts * options.answers, 32 + options.new
    room = sampler.Config(slots, length, queue=slots, buckets=(32,), dtype=dtype)
    parts: dict[str, list] = {}
    others: dict[str, str] = {}

    def noting(name: str, call: Callable[[], list[float]]) -> Callable[[], None]:
        return lambda: parts.setdefault(name, []).append(call())

    with contextlib.ExitStack() as stack:
        share = stack.enter_context(quiet_share())
        asker = Asker(opened, sampler.make(opened.model, room), Scorer(vowels))
        stack.callback(asker.close)
        rows = {
            name: noting(name, step(opened, options, asker, recompute))
            for name, recompute in (("jrl", True), ("jrl, sampler's", False))
        }
        if options.peer_python is not None and not options.gpu:
            folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model"
            saver(opened)(opened.params, folder)
            for threads in sorted(set(options.threads)):
                ask = stack.enter_context(trl(str(folder), threads, options))
                others = ask()

                def call(ask=ask):
                    found = ask()
                    return [found["sampling"], found["seconds"] - found["sampling"]]

                name = f"TRL, {threads} thread{'s' * (threads > 1)}"
                rows[name] = noting(name, call)
        in_turn(rows, options.repeats)
    # The parts are those of the timed calls: the first two of each row are not.
    kept = {name: found[2:] for name, found in parts.items()}
    return {
        "prompts": options.prompts,
        "answers": options.answers,
        "new_tokens": options.new,
        "sizes": dataclasses.asdict(sizes),
        "dtype": dtype,
        "seconds": {name: summary([sum(x) for x in found]) for name, found in kept.items()},
        "parts": {
            name: {
                part: summary(list(values))
                for part, values in zip(
                    PARTS if name.startswith("jrl") else ("sampling, scoring", "update"),
                    zip(*found, strict=True),
                    strict=True,
                )
            }
            for name, found in kept.items()
        },
        "foreign": share.foreign,
        "versions": versions() | others,
    }


def main(options: LmGrpoStep) -> None:
    """Measures, prints a table and saves it."""
    if options.quick:
        options = dataclasses.replace(options, new=8, repeats=2)
    result = measure(options)
    medians = {name: x["median"] for name, x in result["seconds"].items()}
    theirs = min((x for name, x in medians.items() if name.startswith("TRL")), default=np.nan)
    tokens = options.prompts * options.answers * options.new
    table = []
    for name, taken in medians.items():
        whole, parts = result["seconds"][name], result["parts"][name]
        cells = [f"{taken:.3f}", f"{whole['min']:.3f}-{whole['max']:.3f}", f"{tokens / taken:.0f}"]
        cells += [f"{parts[part]['median']:.3f}" if part in parts else "" for part in PARTS]
        table.append([name, *cells, f"{theirs / taken:.2f}"])
    header = ["row", "s", "range", "tokens/s", *PARTS, "faster than TRL by"]
    show(f"one step of GRPO, medians, foreign {result['foreign']}", header, table)
    save("lm_grpo_step_gpu" if options.gpu else "lm_grpo_step", result, options)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(LmGrpoStep))
