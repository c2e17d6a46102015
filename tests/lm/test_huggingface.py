"""Folders of transformers are read, and what is saved is read by transformers."""

import json
import shutil

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizer_folders
import transformers
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from jrl.lm import huggingface, safetensors_files, tokenizer
from jrl.lm.config import Config
from jrl.lm.transformer import init_score_head, make, scores


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of every family as transformers saves it, and its logits."""
    found = {}
    for model_type in families.FAMILIES:
        model, folder = families.make(model_type), tmp_path_factory.mktemp(model_type)
        model.save_pretrained(folder)
        found[model_type] = folder, families.logits(model, families.tokens())
    return found


def logits(config, params, tokens=None):
    model = make(config)
    tokens = families.tokens() if tokens is None else tokens
    return jax.jit(lambda p, x: model.logits(p, model.hidden(p, x)[0]))(params, tokens)


def close(x, y, tolerance=1e-5):
    return np.abs(np.asarray(x) - np.asarray(y)).max() <= tolerance * np.abs(y).max()


def edit(folder, **changes):
    """Changes config.json; None deletes a field."""
    raw = json.loads((folder / "config.json").read_text()) | changes
    raw = {name: x for name, x in raw.items() if x is not None}
    (folder / "config.json").write_text(json.dumps(raw))


def equal_trees(x, y):
    assert jax.tree.structure(x) == jax.tree.structure(y)
    jax.tree.map(np.testing.assert_array_equal, x, y)


@pytest.mark.parametrize("model_type", families.FAMILIES)
def test_what_is_saved_loads_in_transformers(model_type, folders, tmp_path):
    folder, expected = folders[model_type]
    config, params = huggingface.load(folder)
    assert close(logits(config, params), expected)
    huggingface.save(tmp_path / "saved", config, params, max_shard_bytes=40_000)
    assert len(list((tmp_path / "saved").glob("model-*-of-*.safetensors"))) > 2
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values()), report
    np.testing.assert_array_equal(families.logits(theirs.eval(), families.tokens()), expected)
    again, same = huggingface.load(tmp_path / "saved")
    assert again == config
    equal_trees(same, params)


def test_shards_of_transformers(folders, tmp_path):
    families.make("llama").save_pretrained(tmp_path, max_shard_size="30KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    equal_trees(huggingface.load(tmp_path)[1], huggingface.load(folders["llama"][0])[1])


@pytest.mark.parametrize("model_type", ["qwen2", "gemma2"])
def test_bfloat16(model_type, tmp_path):
    import torch

    model = families.make(model_type).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs")
    config, params = huggingface.load(tmp_path / "theirs")
    _, half = huggingface.load(tmp_path / "theirs", "bfloat16")
    assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.bfloat16.dtype}
    equal_trees(jax.tree.map(lambda x: x.astype(jnp.float32), half), params)
    load = transformers.AutoModelForCausalLM.from_pretrained
    theirs = load(tmp_path / "theirs", dtype=torch.float32, attn_implementation="eager")
    assert close(logits(config, params), families.logits(theirs, families.tokens()))

    huggingface.save(tmp_path / "ours", config, params, dtype="bfloat16")
    theirs = load(tmp_path / "ours")
    assert theirs.dtype == torch.bfloat16
    state = model.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in theirs.state_dict().items())


def test_every_device_reads_its_own_part(folders, monkeypatch):
    folder, expected = folders["llama"]
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    placed, read = {}, []

    def sharding(path, shape):
        # Over the layers' outputs, their inputs, the vocabulary, or not at all.
        axes = {"o": (None, "data", None), "down": (None, None, ("data", "model"))}
        spec = axes.get(path.split("/")[-2], (None, None, "model")) if "kernel" in path else ()
        placed[path] = shape
        return NamedSharding(mesh, PartitionSpec(*spec))

    def counting(stored, index):
        part = safetensors_files.read(stored, index)
        read.append(part.nbytes)
        return part

    monkeypatch.setattr(huggingface, "read", counting)
    config, params = huggingface.load(folder, sharding=sharding)
    assert placed["layers/mlp/up/kernel"] == (3, 48, 80)
    layers = params["layers"]
    parts = {
        "up": (layers["mlp"]["up"]["kernel"], (3, 48, 20)),
        "down": (layers["mlp"]["down"]["kernel"], (3, 80, 6)),
        "o": (layers["attention"]["o"]["kernel"], (3, 24, 48)),
        "norm": (params["norm"]["scale"], (48,)),
    }
    for name, (x, shape) in parts.items():
        assert {shard.data.shape for shard in x.addressable_shards} == {shape}, name
        assert len(x.addressable_shards) == 8
    assert sum(read) == sum(x.nbytes for x in jax.tree.leaves(params))
    assert close(logits(config, params), expected)
    equal_trees(params, huggingface.load(folder)[1])


def test_what_is_loaded_may_be_donated(folders):
    """Memory that jax took over from NumPy is not its own to write to, which is its business."""
    _, params = huggingface.load(folders["qwen2"][0])
    copies = jax.tree.map(np.array, params)
    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    equal_trees(add(add(params)), jax.tree.map(lambda x: x + 1 + 1, copies))
    assert all(x.is_deleted() for x in jax.tree.leaves(params))
    assert not any(x.committed for x in jax.tree.leaves(huggingface.load(folders["qwen2"][0])[1]))


def test_a_sharded_model_is_saved(folders, tmp_path):
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    config, params = huggingface.load(
        folders["qwen3"][0],
        sharding=lambda path, shape: NamedSharding(
            mesh, PartitionSpec(*(None,) * (len(shape) - 1), "model")
        ),
    )
    huggingface.save(tmp_path / "saved", config, params)
    ours = load_file(tmp_path / "saved" / "model.safetensors")
    equal_trees(ours, load_file(folders["qwen3"][0] / "model.safetensors"))


def test_reward_models(tmp_path):
    model = families.make("qwen2", "SequenceClassification", num_labels=1)
    model.save_pretrained(tmp_path / "theirs")
    config, params = huggingface.load(tmp_path / "theirs")
    tokens = families.tokens()
    hidden = jax.jit(make(config).hidden)(params, tokens)[0]
    expected = families.logits(model, tokens)
    assert close(scores(params["score"], hidden)[:, -1:], expected)
    huggingface.save(tmp_path / "ours", config, params)
    theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager", pad_token_id=0
    )
    assert theirs.config.num_labels == 1 and not any(report.values()), report
    assert close(families.logits(theirs.eval(), tokens), expected)


def test_the_bias_of_a_score_head_is_kept(tmp_path):
    config = Config(num_layers=1, tied=False)
    head = init_score_head(jax.random.key(1), config) | {"bias": jnp.float32(0.25)}
    params = jax.jit(make(config).init)(jax.random.key(0)) | {"score": head}
    huggingface.save(tmp_path / "saved", config, params)
    again, same = huggingface.load(tmp_path / "saved")
    assert again == config
    equal_trees(same, params)


def test_the_text_model_of_a_multimodal_gemma3(tmp_path):
    text = families.make("gemma3_text")
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    both = transformers.Gemma3Config(
        text_config=text.config.to_dict(),
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=90,
        boi_token_index=91,
        eoi_token_index=92,
    )
    model = transformers.Gemma3ForConditionalGeneration(both).eval()
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.save_pretrained(tmp_path)
    config, params = huggingface.load(tmp_path)
    assert close(logits(config, params), families.logits(text, families.tokens()))


def test_names_without_prefix_and_harmless_tensors(folders, tmp_path):
    for model_type in ("llama", "qwen2"):
        folder, expected = folders[model_type]
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(6, np.float32)
        tensors["lm_head.weight"] = tensors.get("lm_head.weight", np.ones((97, 48), np.float32))
        shutil.copytree(folder, tmp_path / model_type)
        for change in (lambda x: x, lambda x: x.removeprefix("model.")):
            named = {change(name): x for name, x in tensors.items()}
            save_file(named, tmp_path / model_type / "model.safetensors")
            assert close(logits(*huggingface.load(tmp_path / model_type)), expected)


def test_all_tensors_that_do_not_fit_are_in_one_error(folders, tmp_path):
    shutil.copytree(folders["qwen3"][0], tmp_path / "bad")
    file = tmp_path / "bad" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.3.mlp.up_proj.weight"] = np.ones((80, 48), np.float32)
    tensors["model.layers.2.self_attn.q_proj.weight"] = np.ones((64, 47), np.float32)
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(16, np.int8)
    save_file(tensors, file)
    with pytest.raises(ValueError) as caught:
        huggingface.load(tmp_path / "bad")
    assert str(caught.value) == (
        f"{tmp_path / 'bad'}: tensors do not fit config.json: "
        "missing layers.1.mlp.up_proj.weight, norm.weight; "
        "unexpected layers.3.mlp.up_proj.weight; "
        "misshapen layers.2.self_attn.q_proj.weight is F32 [64, 47], not F32 [64, 48], "
        "layers.0.self_attn.q_norm.weight is I8 [16], not F32 [16]"
    )
    with pytest.raises(ValueError, match="embed_tokens.weight is F32 .97, 48., not F32 .98, 48."):
        edit(tmp_path / "bad", vocab_size=98)
        huggingface.load(tmp_path / "bad")


def test_files_that_are_missing_or_broken(folders, tmp_path):
    with pytest.raises(ValueError, match="config.json: missing, give a folder"):
        huggingface.load(tmp_path / "nothing")
    config, params = huggingface.load(folders["llama"][0])
    folder = tmp_path / "saved"
    huggingface.save(folder, config, params, max_shard_bytes=60_000)
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{first.name}.*not fully covered"):
        huggingface.load(folder)
    second.unlink()
    with pytest.raises(ValueError, match=f"names files that are missing: {second.name}"):
        huggingface.load(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="neither model.safetensors nor model.safetensors.index"):
        huggingface.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: Expecting property name"):
        huggingface.load(folder)
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16"):
        huggingface.load(folders["llama"][0], "int32")


def test_what_cannot_be_saved_leaves_nothing(tmp_path):
    config = Config(num_layers=1)
    params = jax.jit(make(config).init)(jax.random.key(0))
    layers = {**params["layers"], "extra": jnp.ones(1)}
    del layers["mlp_norm"]
    with pytest.raises(ValueError) as caught:
        huggingface.save(
            tmp_path / "saved", config, {**params, "embedding": jnp.ones((3, 4)), "layers": layers}
        )
    assert str(caught.value) == (
        "params do not fit config: missing layers/mlp_norm/scale; unexpected layers/extra; "
        "misshapen embedding is [3, 4], not [256, 128]"
    )
    with pytest.raises(ValueError, match="max_shard_bytes must be at least 1"):
        huggingface.save(tmp_path / "saved", config, params, max_shard_bytes=0)
    with pytest.raises(ValueError, match="tokenizer_from=.*: no tokenizer is there"):
        huggingface.save(tmp_path / "saved", config, params, tokenizer_from=tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_save_leaves_the_old_folder(tmp_path, monkeypatch):
    config = Config(num_layers=1)
    old, new = (jax.jit(make(config).init)(jax.random.key(seed)) for seed in (0, 1))
    huggingface.save(tmp_path / "saved", config, old)
    with pytest.raises(ValueError, match="exists already: choose another, or pass overwrite=True"):
        huggingface.save(tmp_path / "saved", config, new)

    def interrupted(x, out):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(huggingface, "_transpose", interrupted)
        huggingface.save(tmp_path / "saved", config, new, overwrite=True)
    equal_trees(huggingface.load(tmp_path / "saved")[1], old)
    # What a killed process leaves behind does not matter.
    (tmp_path / ".saved.unfinished").mkdir()
    huggingface.save(tmp_path / "saved", config, new, overwrite=True)
    equal_trees(huggingface.load(tmp_path / "saved")[1], new)
    assert [x.name for x in tmp_path.iterdir()] == ["saved"]


def test_the_tokenizer_is_carried_over(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    tokenizer_folders.save(source, "llama")
    raw = {"model_type": "llama", "eos_token_id": [7, 8], "max_position_embeddings": 99}
    (source / "config.json").write_text(json.dumps(raw))
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "short.jinja").write_text("{{ messages[0].content }}")
    config = Config(num_layers=1)
    params = jax.jit(make(config).init)(jax.random.key(0))
    huggingface.save(tmp_path / "saved", config, params, tokenizer_from=source)
    ours, theirs = tokenizer.load(tmp_path / "saved"), tokenizer.load(source)
    chat = [{"role": "user", "content": "2+2?"}]
    assert ours.apply_chat(chat) == theirs.apply_chat(chat)
    short = tokenizer.load(tmp_path / "saved", "short")
    assert short.render_chat(chat) == "2+2?"
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["eos_token_id"] == [7, 8] and saved["max_position_embeddings"] == 99
    assert saved["bos_token_id"] is None
