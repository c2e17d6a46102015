"""A small random model of every family, made by transformers."""

import numpy as np

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # So short that wavelengths of 12 features lie on both sides of it.
    "original_max_position_embeddings": 64,
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}

FAMILIES = {
    "llama": ("Llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": False}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 6,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 1.5,
        },
    ),
    "gemma3_text": (
        "Gemma3",
        {
            "num_hidden_layers": 7,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 6,
            "rope_parameters": GEMMA3_ROPE,
        },
    ),
}
"""model_type -> (prefix of its classes, what its configuration says beyond `SIZES`)."""


def make(model_type, head="CausalLM", seed=0, **changes):
    """Makes a model with weights large enough for every part of it to matter."""
    import torch
    import transformers

    prefix, fields = FAMILIES[model_type]
    kind = getattr(transformers, prefix + ("TextConfig" if prefix == "Gemma3" else "Config"))
    # A configuration writes into the dictionaries that it is given.
    fields = {k: dict(v) if isinstance(v, dict) else v for k, v in (SIZES | fields).items()}
    config = kind(**(fields | changes))
    if head == "SequenceClassification" and prefix == "Gemma3":
        prefix = "Gemma3Text"
    model = getattr(transformers, f"{prefix}For{head}")._from_config(
        config, attn_implementation="eager"
    )
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, x in sorted(model.named_parameters()):
            std = 0.3 if x.ndim == 1 else (1.0 if "embed" in name else 1.5) * x.shape[-1] ** -0.5
            around = 1.0 if "norm" in name and "gemma" not in model_type else 0.0
            values = around + std * rng.standard_normal(x.shape)
            x.copy_(torch.from_numpy(values.astype(np.float32)))
    return model.eval()


def logits(model, tokens, mask=None):
    """Runs a model on [B, L] and returns its logits; of a classifier, one for each row."""
    import torch

    mask = np.ones_like(tokens) if mask is None else mask
    with torch.no_grad():
        return model(
            torch.from_numpy(np.asarray(tokens, np.int64)),
            attention_mask=torch.from_numpy(np.asarray(mask, np.int64)),
            use_cache=False,
        ).logits.numpy()


def tokens(batch=3, length=20, seed=1, vocab_size=SIZES["vocab_size"]):
    """Draws tokens [B, L], none of which pads."""
    return np.random.default_rng(seed).integers(3, vocab_size, (batch, length)).astype(np.int32)
