"""How long does one step of TRL's GRPO take? The half that runs in an environment of its own.

Makes one step for each line of standard input and answers with one line of JSON: `{"seconds",
"sampling"}`, the second of which is that part of the first in which answers are sampled and scored.
The first line that it writes has the versions. Nothing of jrl is imported.

    python benchmarks/lm_peers.py FOLDER '{"threads": 1, "prompts": 2, ...}'
"""

import json
import sys
import tempfile
import time

VOWELS = frozenset("aeiou")


def vowels(prompt: str, completion: str) -> float:
    """Returns the share of vowels: a reward that costs nothing."""
    return sum(letter in VOWELS for letter in completion) / max(len(completion), 1)


def trainer(folder: str, prompts: list[str], answers: int, new_tokens: int, batch: int):
    """Makes TRL's trainer: its defaults, but for what the docstring of lm_grpo_step names."""
    import datasets
    import transformers
    import trl

    class Timed(trl.GRPOTrainer):
        sampling = 0.0

        def _generate_and_score_completions(self, inputs):
            began = time.perf_counter()
            found = super()._generate_and_score_completions(inputs)
            self.sampling = time.perf_counter() - began
            return found

    config = trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch * answers,
        num_generations=answers,
        max_completion_length=new_tokens,
        generation_kwargs={"min_new_tokens": new_tokens},
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        num_iterations=1,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        max_steps=10**6,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return Timed(
        model=transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
        reward_funcs=lambda prompts, completions, **_: list(map(vowels, prompts, completions)),
        args=config,
        train_dataset=datasets.Dataset.from_list([{"prompt": text} for text in prompts]),
    )


def main() -> None:
    """Trains, one step at a time, until the input ends."""
    # What libraries print is not an answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    asked = json.loads(sys.argv[2])
    import torch
    import transformers
    import trl

    torch.set_num_threads(asked.pop("threads"))
    made = trainer(sys.argv[1], **asked)

    def answer(content):
        print(json.dumps(content), file=answers, flush=True)
        if not sys.stdin.readline():
            raise SystemExit
        return time.perf_counter()

    class Turns(transformers.TrainerCallback):
        def on_train_begin(self, *_, **__):
            names = {"trl": trl, "torch": torch, "transformers": transformers}
            self.began = answer({name: module.__version__ for name, module in names.items()})

        def on_step_end(self, *_, **__):
            spent = time.perf_counter() - self.began
            self.began = answer({"seconds": spent, "sampling": made.sampling})

    made.add_callback(Turns())
    made.train()


if __name__ == "__main__":
    main()
