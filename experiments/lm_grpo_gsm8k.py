r"""Does GRPO make Qwen2.5-0.5B-Instruct better at the word problems of GSM8K?

Command, for a GPU of 40 GB or more, with the model's folder at hand:
  jrl run experiments/lm_grpo_gsm8k.py --task.model.folder Qwen2.5-0.5B-Instruct
Data are tensorflow-datasets' gsm8k (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168),
downloaded on first use, or `--task.data.train FILE --task.data.test FILE` with lines of
{"question": ..., "answer": ...}. Adapters alone need less memory: `--task.model.lora-rank 32`.

Result: not measured, for want of a GPU; the tests run all of it on a tiny random model with data of
GSM8K's schema. The held-out problems are answered with the likeliest tokens before the first update
and after every 50, so that a run has its own base line.
"""

from jrl.algos import grpo
from jrl.data import tfds
from jrl.lm import rewards, sampler
from jrl.streams import Asking, Data, Grpo, Model, StreamExperiment
from jrl.streams.answers import Config as Batches

experiment = StreamExperiment(
    name="lm_grpo_gsm8k",
    task=Grpo(
        model=Model(
            folder="Qwen2.5-0.5B-Instruct",
            remat="full",
            chat=True,
            system="Reason step by step, and put the final answer within \\boxed{}.",
        ),
        data=Data(open=lambda split: tfds.load("gsm8k", split, download=True), held_out=1319),
        batches=Batches(prompts=32, lengths=(512, 768, 1024)),
        asking=Asking(
            reward=rewards.number_match,
            max_new_tokens=512,
            sampler=sampler.Config(
                slots=256, length=1024, queue=512, buckets=(128, 256), dtype="bfloat16"
            ),
        ),
    ),
    config=grpo.Config(
        updates=500,
        group_size=8,
        max_new_tokens=512,
        microbatches=8,
        compute_dtype="bfloat16",
        aggregation="constant",
        advantage="dr_grpo",
    ),
    hyper=grpo.Hyper(learning_rate=1e-6, eps_high=0.28, warmup=0.02),
    log_every=1,
    evaluate_every=50,
    checkpoint_every=50,
    metric="eval/reward",
)
