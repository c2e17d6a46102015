"""config.json of published models and of transformers 5, and what no `Config` can say."""

import dataclasses

import families
import pytest
import transformers

from jrl.lm.config import Config, Rope
from jrl.lm.huggingface_config import config_from, config_to

LLAMA_3_2_1B = {
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131_072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128_256,
}
QWEN_2_5_0_5B = {
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32_768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "sliding_window": 32_768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151_936,
}
QWEN_3_0_6B = QWEN_2_5_0_5B | {
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "sliding_window": None,
}
GEMMA_2_2B = {
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "sliding_window": 4096,
    "vocab_size": 256_000,
}
GEMMA_3_1B = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32_768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "rope_local_base_freq": 10_000,
    "rope_scaling": None,
    "rope_theta": 1_000_000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262_144,
}
GEMMA_3_4B = {
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
}
PUBLISHED = [LLAMA_3_2_1B, QWEN_2_5_0_5B, QWEN_3_0_6B, GEMMA_2_2B, GEMMA_3_1B, GEMMA_3_4B]


def names(raw):
    return raw["model_type"]


@pytest.mark.parametrize("raw", PUBLISHED, ids=names)
def test_published_models_in_their_form_and_that_of_transformers_5(raw):
    """What transformers makes of an old file, written in its new form, says the same."""
    new = transformers.AutoConfig.for_model(**raw).to_dict()
    assert "rope_theta" not in new
    config = config_from(raw)
    assert config == config_from(new)
    again = config_to(config)
    assert config_from(again) == config
    theirs = transformers.AutoConfig.for_model(**again).to_dict()
    assert config_from(theirs) == config
    # Each of the two forms that are written is enough.
    for forms in (("rope_parameters", "layer_types"), ("rope_theta", "rope_scaling")):
        assert config_from({k: v for k, v in again.items() if k not in forms}) == config


def test_what_published_models_are():
    llama, qwen2, qwen3, gemma2, gemma3, large = map(config_from, PUBLISHED)
    assert llama.rope == Rope(5e5, "llama3", 32.0, 1.0, 4.0, 8192)
    assert llama.tied and llama.activation == "silu" and llama.norm_eps == 1e-5
    assert qwen2.qkv_bias and qwen2.head_dim == 64 and not qwen2.sliding
    assert qwen3.qk_norm and not qwen3.qkv_bias and qwen3.head_dim == 128
    assert (gemma2.attention_softcap, gemma2.final_softcap) == (50.0, 30.0)
    assert gemma2.sliding[:3] == (True, False, True) and gemma2.window == 4096 and gemma2.tied
    assert gemma2.attention_scale is None and gemma2.rope == Rope(1e4)
    assert gemma3.sliding[:7] == (True,) * 5 + (False, True) and gemma3.window == 512
    assert (gemma3.rope, gemma3.local_rope) == (Rope(1e6), Rope(1e4))
    assert (large.rope, large.local_rope) == (Rope(1e6, "linear", 8.0), Rope(1e4))
    assert (large.num_heads, large.num_kv_heads, large.head_dim) == (8, 4, 256)
    assert (large.vocab_size, large.window, large.scale_embeddings) == (262_208, 1024, True)


@pytest.mark.parametrize(
    "raw, fields",
    [
        (QWEN_2_5_0_5B | {"use_sliding_window": True}, {"sliding": (False,) * 21 + (True,) * 3}),
        (QWEN_2_5_0_5B | {"rope_scaling": {"type": "linear", "factor": 2.0}}, {}),
        (QWEN_2_5_0_5B | {"hidden_act": "gelu_pytorch_tanh"}, {"activation": "gelu_tanh"}),
        (QWEN_2_5_0_5B | {"num_key_value_heads": None}, {"num_kv_heads": 14}),
        (GEMMA_2_2B | {"query_pre_attn_scalar": 144}, {"attention_scale": 1 / 12}),
        (GEMMA_2_2B | {"final_logit_softcapping": None}, {"final_softcap": None}),
        (GEMMA_2_2B | {"sliding_window": None}, {"sliding": (), "window": None}),
    ],
)
def test_options(raw, fields):
    config = config_from(raw)
    for name, x in fields.items():
        assert getattr(config, name) == x
    assert config_from(config_to(config)) == config


@pytest.mark.parametrize(
    "raw, message",
    [
        ({"model_type": "mistral"}, "'mistral' is not llama, qwen2, qwen3, gemma2 or gemma3_text"),
        ({}, "model_type None is not llama"),
        (LLAMA_3_2_1B | {"attention_bias": True}, "attention_bias=True is not supported"),
        (LLAMA_3_2_1B | {"mlp_bias": True}, "mlp_bias=True is not supported"),
        (LLAMA_3_2_1B | {"hidden_act": "relu"}, "hidden_act 'relu' is not one of silu, gelu_py"),
        (LLAMA_3_2_1B | {"hidden_size": None}, "hidden_size is missing"),
        (
            LLAMA_3_2_1B | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope_type 'yarn' is not one of default, linear, llama3",
        ),
        (
            LLAMA_3_2_1B | {"rope_parameters": {"rope_type": "dynamic"}, "rope_scaling": None},
            "rope_type 'dynamic'",
        ),
        (LLAMA_3_2_1B | {"rope_scaling": {"type": "linear"}}, "factor is missing"),
        (LLAMA_3_2_1B | {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supp"),
        (LLAMA_3_2_1B | {"quantization_config": {"bits": 4}}, "quantization_config="),
        (LLAMA_3_2_1B | {"num_attention_heads": 20}, "num_kv_heads=8 must divide num_heads=20"),
        (GEMMA_3_1B | {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        (GEMMA_3_1B | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not"),
        (GEMMA_2_2B | {"layer_types": ["chunked_attention"] * 26}, "layer_types has 'chunked_att"),
    ],
)
def test_what_is_not_supported_is_named(raw, message):
    with pytest.raises(ValueError, match=message):
        config_from(raw)


@pytest.mark.parametrize(
    "config, message",
    [
        (Config(final_softcap=30.0), "config.final_softcap=30.0 does not exist in llama"),
        (Config(qk_norm=True, qkv_bias=True), "config.qkv_bias=True does not exist in qwen3"),
        (
            Config(post_norms=True),
            "config.norm_offset=0.0, config.scale_embeddings=False does not exist in gemma2",
        ),
        (Config(sliding=(True,) * 4, window=8), "config.window=8, config.sliding=.* in llama"),
        (Config(attention_scale=0.3), "config.attention_scale=0.3 does not exist in llama"),
        (Config(head_dim=7), "config.head_dim must be even"),
    ],
)
def test_what_no_family_has_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        config_to(config)


def test_choices_of_whoever_runs_it_are_not_written():
    config = Config(attention="cudnn", remat="full")
    assert config_from(config_to(config)) == dataclasses.replace(
        config, attention="auto", remat="none"
    )
    assert config_to(config, eos_token_id=[3, 4])["eos_token_id"] == [3, 4]


@pytest.mark.parametrize("model_type", families.FAMILIES)
def test_transformers_knows_every_field_that_is_written(model_type):
    raw = config_to(config_from(families.make(model_type).config.to_dict()))
    theirs = transformers.AutoConfig.for_model(**raw)
    assert {name: getattr(theirs, name) for name in ("vocab_size", "hidden_size", "head_dim")} == {
        name: raw[name] for name in ("vocab_size", "hidden_size", "head_dim")
    }
