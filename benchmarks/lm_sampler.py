"""How many tokens per second does the sampler draw, against transformers.generate?

The same weights (4 layers, width 256, Llama's architecture), prompts of 32 tokens, temperature 1,
no end of sequence: the numbers of new tokens are given. What counts are tokens that were asked for.

- equal: 16 requests of 256 new tokens each, vocabulary 256.
- long_tail: 160 requests with numbers of tokens drawn from an exponential distribution of mean 48,
  at most 256. `transformers` takes them 16 at a time, and each such batch until its longest is
  done; so does the row `jrl, batches`. `jrl` gives a free slot to the next request, which is
  fewer steps by `steps_in_batches` / `steps_with_refilling`.
- large_vocabulary, filters: 16 requests of 32 new tokens, vocabulary 32 000, without filters and
  with top-k 50 and top-p 0.9.

    python -m benchmarks.lm_sampler [--quick] [--repeats 5] [--threads 2]

`--gpu` measures what bounds decoding of a large model instead: steps of all slots in bfloat16 with
a model of Qwen2.5-0.5B's shape, and what they must read (all weights once, and what the cache holds
of every slot) per second, as a share of what a copy reads and writes per second in the same run.
"""

import dataclasses
import pathlib
import sys
import tempfile

import jax
import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks.common import Options, human, in_turn, optional, quiet_share, save, show, summary
from benchmarks.lm_parts import QWEN, bandwidth, small, versions, weights
from jrl.lm import generation, huggingface, requests, sampler, transformer
from jrl.lm.config import Config
from jrl.lm.requests import Settings

SLOTS = 16
PROMPT = 32
KEY = jax.random.key(0)


@dataclasses.dataclass
class LmSampler(Options):
    """Options of this benchmark."""

    threads: int = 2
    """Of torch."""
    gpu: bool = False
    """Measure decoding of the model of `sizes` in bfloat16."""
    sizes: Config = QWEN
    """Of the model of `gpu`."""
    batches: tuple[int, ...] = (64, 256)
    """Slots of `gpu`."""
    prompt: int = 512
    """Tokens of the prompts of `gpu`."""
    steps: int = 256
    """Steps of one timed call of `gpu`."""
    copied: int = 2**30
    """Bytes of the copy that `gpu` is compared with."""


def lengths(scenario: str, quick: bool) -> list[int]:
    """Returns the number of new tokens of every request."""
    if scenario == "long_tail":
        drawn = np.random.default_rng(0).exponential(48, 160).astype(int) + 1
        return [int(n) for n in np.minimum(drawn, 256)][: 32 if quick else 160]
    if scenario == "equal":
        return [16 if quick else 256] * SLOTS
    return [4 if quick else 32] * SLOTS


def refilled_steps(new: list[int]) -> int:
    """Returns how long it takes if the first slot to be free takes the next request."""
    busy = [0] * SLOTS
    for n in new:
        busy[busy.index(min(busy))] += n
    return max(busy)


def models(vocab_size: int):
    """Returns transformers' model (None without it), and ours with the same weights."""
    theirs = optional("transformers", "jrl[lm] transformers torch")
    if theirs is None:
        return None, *own_model(vocab_size)
    config = theirs.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    model = theirs.LlamaForCausalLM(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded, params = huggingface.load(folder)
    return model, transformer.make(loaded), params


def own_model(vocab_size: int):
    """Returns our model with weights of its own."""
    model = transformer.make(small(vocab_size))
    return model, model.init(KEY)


def calls(scenario: str, options: LmSampler) -> tuple[dict, int]:
    """Returns the rows of a scenario, and the tokens that each of them draws."""
    new = lengths(scenario, options.quick)
    vocab_size = 256 if scenario in ("equal", "long_tail") else 32_000
    filters = {"top_k": 50, "top_p": 0.9} if scenario == "filters" else {}
    theirs, model, params = models(vocab_size)
    prompts = np.random.default_rng(1).integers(0, vocab_size, (len(new), PROMPT))
    config = sampler.Config(slots=SLOTS, length=PROMPT + max(new), buckets=(PROMPT,))
    slots = sampler.make(model, config)
    settings = [Settings(n, **filters) for n in new]

    def refill():
        found = generation.generate(slots, params, prompts, KEY, settings)
        assert [len(x.tokens) for x in found] == new

    def batches():
        for i in range(0, len(new), SLOTS):
            now = slice(i, i + SLOTS)
            generation.generate(slots, params, prompts[now], KEY, settings[now])

    rows = {"jrl": refill}
    if len(new) > SLOTS:
        rows["jrl, batches"] = batches
    if theirs is not None:
        rows["transformers"] = lambda: run_theirs(theirs, prompts, new, filters, options.threads)
    return rows, sum(new)


def run_theirs(model, prompts, new, filters, threads):
    """Completes batches of prompts, each until the longest is done."""
    import torch

    torch.set_num_threads(threads)
    for i in range(0, len(new), SLOTS):
        tokens, most = torch.from_numpy(prompts[i : i + SLOTS]), max(new[i : i + SLOTS])
        found = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=most,
            min_new_tokens=most,
            do_sample=True,
            pad_token_id=0,
            **({"top_k": 0, "top_p": 1.0} | filters),
        )
        assert found.shape[1] == PROMPT + most


def decoding(options: LmSampler, size: int) -> dict:
    """Measures steps of `size` slots that are all busy."""
    c, new = options.sizes, options.steps * (options.repeats + 3)
    length = options.prompt + new
    config = sampler.Config(
        size, length, queue=size, buckets=(options.prompt,), dtype="bfloat16", stops=1
    )
    model = transformer.make(c)
    slots = sampler.make(model, config)
    params = jax.tree.map(lambda x: x.astype("bfloat16"), jax.jit(model.init)(KEY))
    prompts = np.random.default_rng(1).integers(0, c.vocab_size, (size, options.prompt))
    packed = requests.pack(list(prompts), [Settings(new)] * size, range(size), size, length, 1)
    states = [slots.submit(slots.init(KEY), packed)]
    held = []

    def step():
        held.append(int(np.asarray(states[0].length_Q).sum()))
        states[0] = slots.advance(params, states[0], np.int32(0), np.int32(options.steps))
        return states[0].steps

    seconds = in_turn({"jrl": step}, options.repeats)["jrl"]
    # What slots hold in the middle of each timed call; the first two calls prefill and warm up.
    middle = [x + size * options.steps / 2 for x in held[2:]]
    token = 2 * c.num_layers * c.num_kv_heads * c.head_dim * 2
    read = [2 * weights(c) + token * x for x in middle]
    rate = bandwidth(options.copied)
    return {
        "slots": size,
        "prompt": options.prompt,
        "steps": options.steps,
        "tokens_per_second": summary([size * options.steps / s for s in seconds]),
        "bytes_per_step": read,
        "copy_bytes_per_second": rate,
        "share_of_bandwidth": summary(
            [x * options.steps / s / rate for x, s in zip(read, seconds, strict=True)]
        ),
    }


def main_gpu(options: LmSampler) -> None:
    """Measures decoding."""
    results = [decoding(options, size) for size in options.batches]
    table = [
        [
            x["slots"],
            human(x["tokens_per_second"]["median"]),
            f"{x['share_of_bandwidth']['median']:.2f}",
        ]
        for x in results
    ]
    show("decoding, medians", ["slots", "tokens/s", "share of bandwidth"], table)
    content = {"sizes": dataclasses.asdict(options.sizes), "results": results}
    save("lm_sampler_gpu", content, options)


def main(options: LmSampler) -> None:
    """Measures all scenarios."""
    results, table = [], []
    for scenario in ("equal", "long_tail", "large_vocabulary", "filters"):
        rows, tokens = calls(scenario, options)
        with quiet_share() as share:
            seconds = in_turn(rows, options.repeats)
        new = lengths(scenario, options.quick)
        rates = {name: summary([tokens / s for s in x]) for name, x in seconds.items()}
        results.append(
            {
                "scenario": scenario,
                "requests": len(new),
                "new_tokens": tokens,
                "steps_in_batches": sum(max(new[i : i + SLOTS]) for i in range(0, len(new), SLOTS)),
                "steps_with_refilling": refilled_steps(new),
                "tokens_per_second": rates,
                "threads_of_torch": options.threads,
                "foreign": share.foreign,
            }
        )
        for name, rate in rates.items():
            ratio = rates["jrl"]["median"] / rate["median"]
            cells = [human(rate["median"]), f"{human(rate['min'])}-{human(rate['max'])}"]
            table.append([scenario, name, *cells, f"{ratio:.2f}", share.foreign])
    header = ["scenario", "row", "tokens/s", "range", "jrl is faster by", "foreign"]
    show("sampler: tokens per second, medians", header, table)
    save("lm_sampler", {"results": results, "versions": versions()}, options)


if __name__ == "__main__":
    import tyro

    asked = tyro.cli(LmSampler)
    (main_gpu if asked.gpu else main)(asked)
