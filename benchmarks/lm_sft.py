"""How many tokens per second does supervised fine-tuning learn, and how much of the machine is it?

One update of `jrl.algos.sft` (forward, backward, clipping at 1, AdamW) against the same of
transformers and torch (its fused AdamW), from the same weights: 4 layers, width 256, Llama's
architecture, float32. The losses of the first update are compared. Ours computes entropies too.

- small: 16 rows of 64 tokens, vocabulary 256.
- large_vocabulary: 8 rows of 32 tokens, vocabulary 32 000.
- packed: 16 rows of 512 tokens, each four texts of 128, vocabulary 256.

Utilisation is the operations of `lm_parts.training_flops` (6 N T and the attention that is not
masked; what is computed anew does not count) per second, divided by those of a product of 2048 x
2048 matrices in the same dtype in the same run, the faster of jax and torch. Of torch there is a
row for each number of threads, of which the faster counts.

    python -m benchmarks.lm_sft [--quick] [--repeats 5]

`--gpu` measures jrl alone in bfloat16 (parameters of AdamW in float32) with a model of
Qwen2.5-0.5B's shape and packed rows, with our attention and with cudnn's.
"""

import dataclasses
import os
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks.common import Options, human, in_turn, optional, quiet_share, save, show, summary
from benchmarks.lm_parts import QWEN, matmul_rate, seconds, small, training_flops, versions
from jrl.algos import sft
from jrl.lm import huggingface, transformer
from jrl.lm.config import Config
from jrl.lm.policy import Frozen, Policy, TokenBatch

SCENARIOS = {"small": (256, 16, 64, 1), "large_vocabulary": (32_000, 8, 32, 1)}
SCENARIOS["packed"] = (256, 16, 512, 4)
"""Vocabulary, rows, tokens of a row, texts in a row."""


@dataclasses.dataclass
class LmSft(Options):
    """Options of this benchmark."""

    threads: tuple[int, ...] = (1, os.cpu_count() or 1)
    """Of torch, a row for each; on a busy machine more than one is far slower than one."""
    gpu: bool = False
    """Measure jrl alone in bfloat16 with the model of `sizes`."""
    sizes: Config = QWEN
    """Of the model of `gpu`."""
    rows: int = 32
    """Of `gpu`."""
    length: int = 2048
    """Tokens of each row of `gpu`."""
    texts: int = 4
    """In each row of `gpu`."""
    microbatches: int = 4
    """Of `gpu`."""
    attention: tuple[str, ...] = ("own", "cudnn")
    """Of `gpu`."""
    peak: int = 8192
    """Rows and columns of the matrices that `gpu` is compared with."""


def batch(vocab_size: int, rows: int, length: int, texts: int) -> TokenBatch:
    """Draws rows of texts of equal length; all tokens are learned but the first of each."""
    size = length // texts
    index = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    tokens = np.random.default_rng(0).integers(0, vocab_size, (rows, length), np.int32)
    columns = TokenBatch(tokens, index % size > 0, index // size + 1, index % size)
    return jax.tree.map(jnp.asarray, columns)


def ours(config: Config, params, data: TokenBatch, dtype: str, microbatches: int = 1) -> Callable:
    """Returns a call that makes one update and returns its loss."""
    sizes = sft.Config(updates=10**6, microbatches=microbatches, compute_dtype=dtype)
    updater, hp = sft.make(Policy(transformer.make(config)), sizes), sft.Hyper(learning_rate=1e-4)
    update = jax.jit(updater.update, donate_argnums=0)
    states = [updater.init(jax.random.key(0), params, Frozen(), hp)]

    def call():
        states[0], metrics = jax.block_until_ready(update(states[0], data, hp))
        total, weight = metrics["loss"]
        return float(total / weight)

    return call


def theirs(model, data: TokenBatch, threads: int) -> Callable:
    """Returns the same for a model of transformers."""
    import torch

    tokens, positions = (torch.tensor(np.asarray(x)) for x in (data.tokens, data.positions))
    labels = torch.where(torch.tensor(np.asarray(data.mask)), tokens, -100).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)

    def call():
        torch.set_num_threads(threads)
        found = model(
            input_ids=tokens.long(), position_ids=positions.long(), labels=labels, use_cache=False
        )
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return found.loss.item()

    return call


def torch_rate(torch, threads: Sequence[int], size: int = 2048) -> float:
    """Measures torch's product of matrices at its best number of threads."""
    x, best = torch.randn(size, size), 0.0
    for number in sorted(set(threads)):
        torch.set_num_threads(number)
        best = max(best, 2 * size**3 / seconds(lambda: (x @ x).sum().item()))
    return best


def peers(
    config: Config, data: TokenBatch, threads: Sequence[int]
) -> tuple[dict[str, Callable], dict]:
    """Returns the rows of transformers by number of threads, and the weights they begin with."""
    made = optional("transformers", "jrl[lm] transformers torch")
    params, rows = transformer.make(config).init(jax.random.key(0)), {}
    if made is None:
        return rows, params
    made.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / "model"
        huggingface.save(folder, config, params)
        for number in sorted(set(threads)):
            model = made.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").train()
            name = f"transformers, {number} thread{'s' * (number > 1)}"
            rows[name] = theirs(model, data, number)
    return rows, params


def cases(options: LmSft) -> dict[str, tuple]:
    """Returns scenario -> (rows of calls, sizes of the model, lengths of its texts)."""
    found = {}
    if options.gpu:
        shape = (options.sizes.vocab_size, options.rows, options.length, options.texts)
        data, rows = batch(*shape), {}
        for attention in options.attention:
            sizes = dataclasses.replace(options.sizes, attention=attention, remat="dots")
            params = transformer.make(sizes).init(jax.random.key(0))
            rows[f"jrl, {attention}"] = ours(sizes, params, data, "bfloat16", options.microbatches)
        return {"gpu": (rows, options.sizes, shape)}
    for scenario, shape in SCENARIOS.items():
        config, data = small(shape[0]), batch(*shape)
        others, params = peers(config, data, options.threads)
        rows = {"jrl": ours(config, params, data, "float32"), **others}
        losses = [call() for call in rows.values()]
        np.testing.assert_allclose(losses, losses[0], rtol=1e-4, err_msg=scenario)
        found[scenario] = rows, config, shape
    return found


def peaks(options: LmSft) -> dict[str, float]:
    """Measures the products of matrices that utilisation refers to."""
    if options.gpu:
        return {"jax": matmul_rate("bfloat16", options.peak)}
    rates = {"jax": matmul_rate("float32")}
    torch = optional("torch", "torch")
    return rates if torch is None else rates | {"torch": torch_rate(torch, options.threads)}


def main(options: LmSft) -> None:
    """Measures all scenarios."""
    results, table = [], []
    for scenario, (rows, config, shape) in cases(options).items():
        _, count, length, texts = shape
        flops = training_flops(config, [length // texts] * (count * texts))
        with quiet_share() as share:
            limits = peaks(options)
            found = in_turn(rows, 2 if options.quick else options.repeats)
        peak = max(limits.values())
        medians = {name: statistics.median(x) for name, x in found.items()}
        results.append(
            {
                "scenario": scenario,
                "vocabulary, rows, length, texts in a row": shape,
                "flops": flops,
                "matmul_flops_per_second": limits,
                "tokens_per_second": {
                    name: summary([count * length / s for s in x]) for name, x in found.items()
                },
                "utilisation": {name: flops / s / peak for name, s in medians.items()},
                "sizes": dataclasses.asdict(config),
                "foreign": share.foreign,
            }
        )
        best = min((s for n, s in medians.items() if not n.startswith("jrl")), default=np.nan)
        for name, taken in medians.items():
            cells = [human(count * length / taken), f"{flops / taken / peak:.2f}"]
            table.append([scenario, name, *cells, f"{best / taken:.2f}", share.foreign])
    header = ["scenario", "row", "tokens/s", "of the peak", "of transformers", "foreign"]
    show("supervised fine-tuning, medians", header, table)
    content = {"results": results, "versions": versions()}
    save("lm_sft_gpu" if options.gpu else "lm_sft", content, options)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(LmSft))
