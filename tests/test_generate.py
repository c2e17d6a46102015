"""`jrl generate`: transformers' text in pieces, seeds that repeat, one line of error."""

import io
import json
import pathlib
import re
import shutil
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "lm"))

import families  # noqa: E402
import tokenizer_folders  # noqa: E402

from jrl import cli, generate  # noqa: E402
from jrl.run_directory import UsageError  # noqa: E402

PROMPT = "What is 12 * 34?"
SYSTEM = "Be brief."
CONTEXT = 256
SIZES = {"vocab_size": 352, "num_hidden_layers": 2, "max_position_embeddings": CONTEXT}


def jrl(*arguments):
    """Runs a command in this process and returns its exit code."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["generate", *map(str, arguments)])
    return stop.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random Qwen2 with its tokenizer and chat template; nobody changes it."""
    folder = tmp_path_factory.mktemp("qwen2")
    families.make("qwen2", **SIZES).save_pretrained(folder)
    return tokenizer_folders.save(folder, "qwen")


@pytest.fixture
def copy(folder, tmp_path):
    """A folder of the test's own."""
    return shutil.copytree(folder, tmp_path / "copy")


def change(folder, name, **fields):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def theirs(folder, tokens, messages=None, text=None):
    """What transformers makes of a chat or a text: ids and text of the most probable completion."""
    import torch
    import transformers

    torch.set_num_threads(1)  # more than one wait for each other on a busy machine
    # The class for the model_type splits words in its own way, whatever tokenizer.json says.
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    if messages is not None:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer(text, add_special_tokens=messages is None).input_ids])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens,
                           do_sample=False, pad_token_id=0)  # fmt: skip
    new = whole[0, ids.shape[1] :].tolist()
    decode = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return new, tokenizer.decode(new, **decode)


def pieces(folder, *prompt, **options):
    """Runs and returns what was written, and the report."""
    written = []
    report = generate.run(generate.Options(folder, prompt or (PROMPT,), **options), written.append)
    return written, report


def sections(folder, *prompt, **options):
    """The same for several completions: heading -> text."""
    written, report = pieces(folder, *prompt, **options)
    matches = [re.fullmatch(r"\n?=== (.*) ===\n(.*)\n", x, re.S) for x in written]
    assert all(matches), written
    return {x[1]: x[2] for x in matches if x}, report


@pytest.fixture(scope="module")
def greedy(folder):
    """Ids and text of transformers for the prompt as a chat."""
    chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": PROMPT}]
    return theirs(folder, 40, chat)


def test_greedy_text_is_that_of_transformers_and_comes_in_pieces(folder, greedy):
    ids, text = greedy
    written, report = pieces(folder, system=SYSTEM, temperature=0.0, max_new_tokens=40)
    assert "".join(written) == text + "\n"
    assert len(ids) == 40 and len(written) >= 5 and report.startswith("40 tokens, ")
    # Half characters wait for their other half: the random model draws both kinds.
    assert not text.isascii() and re.search(r" tokens/s, length \(loading .*, compiling", report)


def test_the_command(folder, greedy, capsys):
    options = ("--system", SYSTEM, "--temperature", "0", "--max-new-tokens", "40")
    assert jrl("--model", folder, "--prompt", PROMPT, *options) == 0
    out, err = capsys.readouterr()
    assert out == greedy[1] + "\n"
    assert re.fullmatch(
        r"40 tokens, [\d.]+ tokens/s, length \(loading .* s, compiling .* s\)\n", err
    )


def test_the_end_of_a_turn_ends_the_completion(copy, greedy):
    ids, text = greedy
    new = next(i for i in range(5, 40) if ids[i] not in ids[:i])
    change(copy, "generation_config.json", eos_token_id=[2, ids[new]])
    written, report = pieces(copy, system=SYSTEM, temperature=0.0)
    assert report.startswith(f"{new + 1} tokens, ") and "tokens/s, stop (" in report
    assert text.startswith("".join(written).removesuffix("\n").rstrip("\N{REPLACEMENT CHARACTER}"))


@pytest.mark.parametrize("how", ["raw", "no template"])
def test_without_a_template_the_prompt_is_gone_on_with(copy, monkeypatch, how):
    if how == "no template":
        # The beginning of sequence comes first, as transformers puts it there.
        tokenizer_folders.save(copy, "llama", chat_template=None)
        change(copy, "generation_config.json", eos_token_id=4)
    _, text = theirs(copy, 20, text=PROMPT + "\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT + "\n\n"))
    written, _ = pieces(copy, "-", raw=how == "raw", temperature=0.0, max_new_tokens=20)
    assert "".join(written) == text + "\n"


def test_several_prompts_and_samples_are_whole_and_their_seeds_repeat(folder):
    options = {"max_new_tokens": 12, "temperature": 0.8, "top_k": 50, "seed": 3}
    one, _ = pieces(folder, **options)
    two, report = sections(folder, PROMPT, "x", samples=2, **options)
    assert list(two) == [f"prompt {i} of 2, sample {j} of 2" for i in (1, 2) for j in (1, 2)]
    assert report.startswith("4 completions, ") and re.search(r"tokens/s, \d (length|stop)", report)
    # The first does not depend on the others, and all of them are different.
    assert two["prompt 1 of 2, sample 1 of 2"] + "\n" == "".join(one)
    assert len(set(two.values())) == 4
    other, _ = pieces(folder, **options | {"seed": 4})
    assert pieces(folder, **options)[0] == one != other


def test_more_requests_than_slots_and_bfloat16(folder):
    found, report = sections(folder, samples=18, max_new_tokens=3, dtype="bfloat16")
    assert list(found) == [f"sample {j} of 18" for j in range(1, 19)]
    assert report.startswith("18 completions, ")


def test_a_stop_ends_the_text_before_it(folder, greedy):
    _, text = greedy
    options = {"system": SYSTEM, "temperature": 0.0, "max_new_tokens": 40}
    # Longer than any piece, so that pieces are held back that may be its beginning.
    stop = text[5:30]
    written, report = pieces(folder, stop=("nowhere to be found", stop), **options)
    assert "".join(written) == text[:5] + "\n" and "tokens/s, stop (" in report
    found, report = sections(folder, stop=(stop,), samples=2, **options)
    assert list(found.values()) == [text[:5]] * 2 and ", 2 stop (" in report
    written, report = pieces(folder, stop=(text[-3:] + "~never",), **options)
    assert "".join(written) == text + "\n" and "tokens/s, length (" in report


def test_the_context_ends_a_completion(folder):
    # Letters of this text are a token each; a model without an end goes on until no room is left.
    _, report = pieces(folder, "x" * 150, raw=True, temperature=0.0)
    assert report.startswith(f"{CONTEXT - 150} tokens, ") and ", length (" in report


def test_a_terminal_without_such_characters_gets_question_marks(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    generate.show("café")
    assert terminal.buffer.getvalue() == b"caf?"


def test_an_interruption_has_a_line_of_its_own(folder, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate.generation, "stream", interrupted)
    monkeypatch.setattr("os._exit", sys.exit)
    assert jrl("--model", folder, "--prompt", "x") == 130
    assert capsys.readouterr() == ("\n", "jrl: error: interrupted\n")


MISTAKES = {
    "no model": (["--prompt", "x"], "--model"),
    "no prompt": (["--model", "M"], "prompt: give one or more"),
    "no folder": (["--model", "Qwen/Qwen3-8B", "--prompt", "x"], "Qwen/Qwen3-8B: no such folder"),
    "empty prompt": (["--model", "M", "--prompt", "x", "--prompt", " "], "prompt 2 is empty"),
    "empty input": (["--model", "M", "--prompt", "-"], "prompt 1 is empty"),
    "no text": (["--model", "M", "--prompt", "\udcff"], "prompt 1 is no text: not UTF-8"),
    "long prompt": (
        ["--model", "M", "--prompt", "x" * 300],
        "which leaves no room in the model's context of 256, shorten it",
    ),
    "temperature": (["--temperature", "-1"], "error: temperature must be at least 0 and finite"),
    "nan": (["--temperature", "nan"], "temperature must be at least 0 and finite, got nan"),
    "top_k": (["--top-k", "-1"], "top_k must be at least 0"),
    "top_p": (["--top-p", "0"], "top_p must be above 0 and at most 1"),
    "min_p": (["--min-p", "2"], "min_p must be between 0 and 1"),
    "no tokens": (["--max-new-tokens", "0"], "max_new_tokens must be at least 1, got 0"),
    "no samples": (["--samples", "0"], "samples must be at least 1, got 0"),
    "seed": (["--seed", "-1"], "seed must be between 0 and 2^32 - 1, got -1"),
    "stop": (["--stop", ""], "stop: empty"),
    "dtype": (["--dtype", "int8"], "--dtype"),
    "raw system": (["--raw", "--system", "x"], "system: there is no chat with --raw"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(folder, capsys, monkeypatch, name):
    arguments, message = MISTAKES[name]
    if "--prompt" not in arguments and "--model" not in arguments:
        arguments = ["--model", "M", "--prompt", "x", *arguments]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert_refused([folder if x == "M" else x for x in arguments], message, capsys)


def assert_refused(arguments, message, capsys):
    assert jrl(*arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("jrl: error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert message in err and out == ""


BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: missing, give a folder"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json: missing"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "unknown": (
        lambda f: change(f, "config.json", model_type="gpt2"),
        "model_type 'gpt2' is not llama, qwen2, qwen3, gemma2 or gemma3_text",
    ),
    "vocabulary": (
        lambda f: change(f, "config.json", vocab_size=97),
        "vocab_size: the model has 97 ids and its tokenizer",
    ),
    "a refusing template": (
        lambda f: change(f, "tokenizer_config.json", chat_template="{{ raise_exception('no!') }}"),
        "chat_template: no!",
    ),
    "no system": (
        lambda f: change(f, "tokenizer_config.json", chat_template=None),
        "which has no chat template, leave --system out",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_one_line(copy, capsys, name):
    spoil, message = BROKEN[name]
    spoil(copy)
    assert_refused(["--model", copy, "--prompt", "x", "--system", "y"], message, capsys)


def test_a_reward_model_is_refused(folder, tmp_path, capsys):
    model = families.make("qwen2", "SequenceClassification", num_labels=1, **SIZES)
    shutil.copytree(folder, tmp_path / "reward")
    model.save_pretrained(tmp_path / "reward")
    capsys.readouterr()
    message = "is a reward model, which completes nothing"
    assert_refused(["--model", tmp_path / "reward", "--prompt", "x"], message, capsys)


@pytest.mark.parametrize("package", ["tokenizers", "jinja2", "safetensors"])
def test_a_missing_package_is_named_with_its_extra(copy, capsys, monkeypatch, package):
    # A template of its own: one that was used before is kept compiled.
    change(copy, "tokenizer_config.json", chat_template="{# " + package + " #}{{ messages }}")
    monkeypatch.setitem(sys.modules, package, None)
    assert_refused(["--model", copy, "--prompt", "x"], "pip install 'jrl[lm]'", capsys)


def test_help(capsys):
    assert jrl("--help") == 0
    out, err = capsys.readouterr()
    assert all(word in out for word in ("--model", "--max-new-tokens", "--min-p")) and err == ""


def test_from_python_mistakes_are_raised(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        generate.run(generate.Options(tmp_path / "none", ("x",)), print)
