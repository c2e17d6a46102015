"""What do log-probabilities of tokens cost in time and memory, against forms with all logits?

From hidden states and the output embedding to log-probabilities and entropies, forward, and the
gradient of a weighted sum of both. Peers: `log_softmax` and a gather; the same on a slice of the
tokens at a time with `jax.checkpoint`, as one would write it by hand; and optax's cross-entropy
with integer labels on all logits, which has no entropies to compute. Memory is what XLA plans
beside arguments and results (`memory_analysis`), which for the gradient excludes the gradient
itself. Seconds of the cores that the program used are kept beside those of the clock: on a machine
that others use they say more. Then ours by the size of the part.

    python -m benchmarks.log_probs [--quick] [--repeats 5] [--sizes qwen llama ...]
"""

import dataclasses
import functools
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import optax

if __package__ in (None, ""):
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks.common import Options, load, quiet_share, save, show, summary
from jrl.lm.log_probs import CHUNK, token_log_probs

SIZES = {
    "qwen": (1, 256, 896, 151_936),
    "wide": (2, 512, 256, 151_000),
    "llama": (4, 512, 256, 32_000),
    "bytes": (16, 128, 128, 259),
}
"""B, L, D, V: the head of Qwen2.5-0.5B; 151 thousand tokens; Llama 2's vocabulary; byte tokens."""
PLANNED = (8, 1024, 896, 151_936)
"""A batch of the 0.5B model that is only compiled: the naive form would not fit here."""
CHUNKS = (512, 2048, 4096, 8192, 16_384)


@dataclasses.dataclass
class LogProbs(Options):
    """Options of this benchmark."""

    sizes: tuple[str, ...] = tuple(SIZES)
    """Keys of SIZES; those left out keep their saved rows."""
    dtype: str = "float32"
    """Of states and head: float32 or bfloat16."""


def naive(hidden, head, targets):
    """All logits, `log_softmax`, a gather."""
    logits = jnp.einsum("bld,vd->blv", hidden, head, preferred_element_type=jnp.float32)
    log_p = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def by_hand(hidden, head, targets, tokens: int = 256):
    """The naive form of a slice of the tokens at a time, computed again backwards."""
    parts = (hidden.reshape(-1, 1, tokens, hidden.shape[-1]), targets.reshape(-1, 1, tokens))
    one = jax.checkpoint(lambda part: naive(part[0], head, part[1]))
    return tuple(x.reshape(targets.shape) for x in jax.lax.map(one, parts))


def with_optax(hidden, head, targets):
    """All logits and optax's cross-entropy; no entropies."""
    logits = jnp.einsum("bld,vd->blv", hidden, head, preferred_element_type=jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return -losses, jnp.zeros_like(losses)


def ours(hidden, head, targets, chunk: int = CHUNK):
    """The library's function."""
    return tuple(token_log_probs(hidden, head, targets, chunk=chunk))


def gradient(f):
    """Makes the gradient of a weighted sum of log-probabilities and entropies."""

    def total(hidden, head, targets):
        log_probs, entropies = f(hidden, head, targets)
        weights = jnp.linspace(-1.0, 1.0, targets.size).reshape(targets.shape)
        return jnp.sum(weights * log_probs + 0.1 * entropies)

    return jax.grad(total, (0, 1))


def data(shape, dtype: str):
    """Hidden states of size one, logits of about size one, random targets."""
    b, length, d, v = shape
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (b, length, d), dtype)
    head = jax.random.normal(keys[1], (v, d), dtype) * d**-0.5
    return hidden, head.astype(dtype), jax.random.randint(keys[2], (b, length), 0, v)


def clocks(call) -> tuple[float, float]:
    """Returns the seconds that a call took, and the seconds of cores that it used."""
    began, used = time.perf_counter(), time.process_time()
    jax.block_until_ready(call())
    return time.perf_counter() - began, time.process_time() - used


def measure(forms: dict, arrays, repeats: int) -> dict:
    """Measures seconds and MiB of the forward pass and the gradient of forms, all in turn."""
    programs, rows = {}, {name: {} for name in forms}
    for name, f in forms.items():
        for what, g in (("forward", f), ("gradient", gradient(f))):
            program = jax.jit(g).lower(*arrays).compile()
            programs[name, what] = functools.partial(program, *arrays)
            memory = program.memory_analysis().temp_size_in_bytes
            rows[name][what] = {"mebibytes": memory / 2**20}
            clocks(programs[name, what])
    with quiet_share() as share:
        rounds = [{key: clocks(call) for key, call in programs.items()} for _ in range(repeats)]
    for (name, what), row in ((key, rows[key[0]][key[1]]) for key in programs):
        seconds, cores = zip(*(one[name, what] for one in rounds), strict=True)
        row |= {"seconds": summary(list(seconds)), "core_seconds": summary(list(cores))}
    return {"foreign": share.foreign, "rows": rows}


def planned(dtype: str) -> list:
    """What the gradient at a real size needs: beside arguments and results, and with them."""
    arrays = jax.eval_shape(functools.partial(data, PLANNED, dtype))
    rows = []
    for name, f in {"naive": naive, "jrl": ours}.items():
        memory = jax.jit(gradient(f)).lower(*arrays).compile().memory_analysis()
        parts = (
            memory.temp_size_in_bytes,
            memory.argument_size_in_bytes,
            memory.output_size_in_bytes,
        )
        rows.append([name, parts[0] / 2**20, sum(parts) / 2**20])
    return rows


def largest_difference(arrays) -> float:
    """The largest difference between ours and the naive form's log-probabilities, in nats."""
    return float(jnp.abs(jax.jit(ours)(*arrays)[0] - jax.jit(naive)(*arrays)[0]).max())


def table(result: dict) -> None:
    """Prints the rows of one size."""
    rows = []
    for name, row in result["rows"].items():
        cells = [name]
        for what in ("forward", "gradient"):
            times = [1e3 * row[what][k]["median"] for k in ("seconds", "core_seconds")]
            cells += [f"{x:.4g}" for x in (*times, row[what]["mebibytes"])]
        rows.append([*cells, result["foreign"]])
    header = ["form", "forward ms", "core ms", "MiB", "gradient ms", "core ms", "MiB", "foreign"]
    show(f"{result['size']} {result['shape']} {result['dtype']}", header, rows)


def main(options: LogProbs) -> None:
    """Measures all forms at all sizes, and ours by the size of a part."""
    kept = [
        row
        for row in load("log_probs", "results", options)
        if row["size"] not in options.sizes or row["dtype"] != options.dtype
    ]
    memory = {"shape": PLANNED, "dtype": options.dtype, "mebibytes": planned(options.dtype)}
    header = ["form", "MiB beside arguments and results", "MiB with them"]
    rows = [[name, *(f"{x:.0f}" for x in mebibytes)] for name, *mebibytes in memory["mebibytes"]]
    show(f"gradient {PLANNED} {options.dtype}, not run", header, rows)
    results = []
    for size in options.sizes[:1] if options.quick else options.sizes:
        shape = (1, 256, 16, 999) if options.quick else SIZES[size]
        arrays = data(shape, options.dtype)
        about = {"size": size, "shape": shape, "dtype": options.dtype}
        forms = {"naive": naive, "slices by hand": by_hand, "optax": with_optax, "jrl": ours}
        result = {**about, **measure(forms, arrays, options.repeats)}
        result["largest_difference"] = largest_difference(arrays)
        table(result)
        chunks = [chunk for chunk in CHUNKS if chunk < shape[-1]]
        parts = {f"chunk {chunk}": functools.partial(ours, chunk=chunk) for chunk in chunks}
        if parts:
            result["chunks"] = measure(parts, arrays, options.repeats)
            table({**about, **result["chunks"]})
        results.append(result)
        save("log_probs", {"results": kept + results, "planned": memory}, options)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(LogProbs))
