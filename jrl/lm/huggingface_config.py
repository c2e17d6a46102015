"""config.json of Hugging Face folders: what it says about a model, as a `Config`, and back."""

import dataclasses
from typing import Any, Literal, NamedTuple

from jrl.lm.config import Config, Rope

__all__ = ["config_from", "config_to"]

Raw = dict[str, Any]


class Family(NamedTuple):
    """What a `model_type` implies."""

    architecture: str
    choices: Raw
    """Fields of `Config` that its config.json does not have."""
    defaults: Raw
    """What fields of its config.json are when they are absent."""


LLAMA = {"hidden_act": "silu", "tie_word_embeddings": False, "rms_norm_eps": 1e-6}
QWEN = LLAMA | {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
GEMMA = {
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
GEMMA_CHOICES = {"post_norms": True, "norm_offset": 1.0, "scale_embeddings": True}

FAMILIES = {
    "llama": Family("Llama", {}, LLAMA),
    "qwen2": Family("Qwen2", {"qkv_bias": True}, QWEN),
    "qwen3": Family("Qwen3", {"qk_norm": True}, QWEN | {"head_dim": 128}),
    "gemma2": Family(
        "Gemma2",
        GEMMA_CHOICES,
        GEMMA
        | {
            "vocab_size": 256_000,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "sliding_window_pattern": 2,
        },
    ),
    "gemma3_text": Family(
        "Gemma3",
        GEMMA_CHOICES | {"qk_norm": True},
        GEMMA
        | {
            "vocab_size": 262_208,
            "sliding_window_pattern": 6,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
        },
    ),
}
"""As in transformers 5.23; folders of multimodal models above all leave fields out."""

ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh"]] = {
    "silu": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}

SLIDING, FULL = "sliding_attention", "full_attention"

REFUSED = ("attention_bias", "mlp_bias", "quantization_config", "use_bidirectional_attention")
"""Options of these families that the model does not have."""


def config_from(raw: Raw) -> Config:
    """Reads what config.json says: `model_type` llama, qwen2, qwen3, gemma2, gemma3 or gemma3_text.

    Both forms of it are understood, that of transformers 5 (`rope_parameters`, `layer_types`) and
    the older one (`rope_theta`, `rope_scaling`, `sliding_window_pattern`). Of a multimodal Gemma 3
    the text model is meant. Raises ValueError for another model, and for an option that the model
    does not have, by its name.

    >>> config_from({"model_type": "gpt2"})
    Traceback (most recent call last):
    ValueError: config.json: model_type 'gpt2' is not llama, qwen2, qwen3, gemma2 or gemma3_text
    """
    if raw.get("model_type") == "gemma3":
        raw = {"model_type": "gemma3_text", **raw.get("text_config", {})}
    if raw.get("model_type") not in FAMILIES:
        *names, last = FAMILIES
        raise ValueError(
            f"config.json: model_type {raw.get('model_type')!r} is not {', '.join(names)} or {last}"
        )
    family = FAMILIES[raw["model_type"]]
    # A present null means something else than an absent field: Gemma 2 without soft caps.
    raw = family.defaults | raw
    _refuse(raw)
    heads, width = _get(raw, "num_attention_heads"), _get(raw, "hidden_size")
    head_dim = raw.get("head_dim") or width // heads
    activation = raw.get("hidden_activation") or raw.get("hidden_act")
    if activation not in ACTIVATIONS:
        names = ", ".join(ACTIVATIONS)
        raise ValueError(f"config.json: hidden_act {activation!r} is not one of {names}")
    sliding = _sliding(raw)
    rope, local_rope = _ropes(raw)
    query = raw.get("query_pre_attn_scalar") or head_dim
    config = Config(
        vocab_size=_get(raw, "vocab_size"),
        num_layers=_get(raw, "num_hidden_layers"),
        width=width,
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        mlp_width=_get(raw, "intermediate_size"),
        rope=rope,
        local_rope=local_rope,
        window=raw.get("sliding_window"),
        sliding=sliding,
        activation=ACTIVATIONS[activation],
        norm_eps=float(raw["rms_norm_eps"]),
        attention_scale=query**-0.5,
        attention_softcap=_number(raw.get("attn_logit_softcapping")),
        final_softcap=_number(raw.get("final_logit_softcapping")),
        tied=raw["tie_word_embeddings"],
        **family.choices,
    )
    config = _plain(config)
    config.validate()
    return config


def config_to(config: Config, **others: Any) -> Raw:
    """Writes a config.json that transformers 4 and 5 read; `others` are fields of theirs alone.

    The family is the one that has these choices: `config_from` gives back the same model
    (`attention` and `remat` are choices of whoever runs it and not written). Where `others` do not
    say how many positions there may be, 32,768 are written: the model here has no limit.

    Raises ValueError with the fields that no family has.

    >>> config_to(Config(qk_norm=True))["model_type"]
    'qwen3'
    >>> config_to(Config(final_softcap=30.0))
    Traceback (most recent call last):
    ValueError: config.final_softcap=30.0 does not exist in llama
    """
    config.validate()
    config = _plain(config)
    model_type = _model_type(config)
    family = FAMILIES[model_type]
    activation = {ours: theirs for theirs, ours in ACTIVATIONS.items()}[config.activation]
    gemma = config.post_norms
    raw = {
        "architectures": [f"{family.architecture}ForCausalLM"],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_activation" if gemma else "hidden_act": activation,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": 32_768,
        # transformers has ids of its own for each family where these are absent.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **_ropes_to(config),
    }
    if model_type != "llama":
        raw |= _sliding_to(config)
    if gemma:
        scale = config.attention_scale
        raw["query_pre_attn_scalar"] = config.head_dim if scale is None else round(scale**-2)
        raw["attn_logit_softcapping"] = config.attention_softcap
        raw["final_logit_softcapping"] = config.final_softcap
    try:
        same = config_from(raw)
    except ValueError as error:
        raise ValueError(f"{error}: this model cannot be written as {model_type}") from error
    lost = [
        f"config.{field.name}={getattr(config, field.name)!r}"
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != getattr(same, field.name)
    ]
    if lost:
        raise ValueError(f"{', '.join(lost)} does not exist in {model_type}")
    return raw | others


def _model_type(config: Config) -> str:
    if config.post_norms:
        return "gemma3_text" if config.qk_norm else "gemma2"
    if config.qk_norm:
        return "qwen3"
    return "qwen2" if config.qkv_bias else "llama"


def _get(raw: Raw, name: str):
    if raw.get(name) is None:
        raise ValueError(f"config.json: {name} is missing")
    return raw[name]


def _number(x) -> float | None:
    return None if x is None else float(x)


def _refuse(raw: Raw) -> None:
    """Raises ValueError for what would make another function of the same weights."""
    # transformers reads this field of Gemma 3 and does not use it.
    unused = ("attn_logit_softcapping",) if raw["model_type"] == "gemma3_text" else ()
    for name in REFUSED + unused:
        if raw.get(name):
            raise ValueError(f"config.json: {name}={raw[name]!r} is not supported")


def _sliding(raw: Raw) -> tuple[bool, ...]:
    """Tells which layers slide."""
    number, window = _get(raw, "num_hidden_layers"), raw.get("sliding_window")
    if window is None or not raw.get("use_sliding_window", True):
        return ()
    if raw.get("layer_types"):
        unknown = set(raw["layer_types"]) - {SLIDING, FULL}
        if unknown:
            raise ValueError(f"config.json: layer_types has {min(unknown)!r}, not supported")
        return tuple(kind == SLIDING for kind in raw["layer_types"])
    if "max_window_layers" in raw:
        return tuple(layer >= raw["max_window_layers"] for layer in range(number))
    if "sliding_window_pattern" in raw:
        return tuple((layer + 1) % raw["sliding_window_pattern"] != 0 for layer in range(number))
    return ()


def _sliding_to(config: Config) -> Raw:
    sliding = config.sliding or (False,) * config.num_layers
    raw: Raw = {"layer_types": [SLIDING if slides else FULL for slides in sliding]}
    if config.window is not None:
        raw["sliding_window"] = config.window
    if not config.post_norms:
        raw["use_sliding_window"] = any(sliding)
        raw["max_window_layers"] = sliding.index(True) if any(sliding) else config.num_layers
    return raw


def _ropes(raw: Raw) -> tuple[Rope, Rope | None]:
    """Reads the rotary embeddings of layers that see everything and of those that slide."""
    new = raw.get("rope_parameters") or {}
    theta = float(raw.get("rope_theta") or 10_000.0)
    local_theta = _number(raw.get("rope_local_base_freq"))
    if FULL in new or SLIDING in new:
        return (
            _rope(new.get(FULL) or {}, theta, raw),
            _rope(new.get(SLIDING) or {}, theta if local_theta is None else local_theta, raw),
        )
    rope = _rope(raw.get("rope_scaling") or new, theta, raw)
    return rope, None if local_theta is None else Rope(local_theta)


def _rope(scaling: Raw, theta: float, raw: Raw) -> Rope:
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "linear", "llama3"):
        raise ValueError(f"config.json: rope_type {kind!r} is not one of default, linear, llama3")
    partial = scaling.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if partial not in (None, 1.0):
        raise ValueError(f"config.json: partial_rotary_factor={partial} is not supported")
    theta = float(scaling.get("rope_theta") or theta)
    if kind == "default":
        return Rope(theta)
    factor = float(_get(scaling, "factor"))
    if kind == "linear":
        return Rope(theta, "linear", factor)
    return Rope(
        theta,
        "llama3",
        factor,
        float(_get(scaling, "low_freq_factor")),
        float(_get(scaling, "high_freq_factor")),
        scaling.get("original_max_position_embeddings") or _get(raw, "max_position_embeddings"),
    )


def _rope_to(rope: Rope) -> Raw:
    raw: Raw = {"rope_type": "default" if rope.scaling == "none" else rope.scaling}
    if rope.scaling != "none":
        raw["factor"] = rope.factor
    if rope.scaling == "llama3":
        raw["low_freq_factor"] = rope.low_factor
        raw["high_freq_factor"] = rope.high_factor
        raw["original_max_position_embeddings"] = rope.original_length
    return raw


def _ropes_to(config: Config) -> Raw:
    """Writes both forms; the older one cannot scale the rotations of sliding layers."""
    rope = _rope_to(config.rope)
    new: Raw = rope | {"rope_theta": config.rope.theta}
    old: Raw = {"rope_theta": config.rope.theta}
    if config.rope.scaling != "none":
        old["rope_scaling"] = rope
    if _model_type(config) == "gemma3_text":
        local = config.rope if config.local_rope is None else config.local_rope
        new = {FULL: new, SLIDING: _rope_to(local) | {"rope_theta": local.theta}}
        old["rope_local_base_freq"] = local.theta
    return {"rope_parameters": new, **old}


def _plain(config: Config) -> Config:
    """Gives all that describe one model the same words."""

    def plain(rope: Rope) -> Rope:
        if rope.scaling == "llama3":
            return rope
        return Rope(rope.theta, rope.scaling, rope.factor if rope.scaling == "linear" else 1.0)

    slides = any(config.sliding)
    rope, local = plain(config.rope), plain(config.local_rope or config.rope)
    return dataclasses.replace(
        config,
        rope=rope,
        local_rope=local if slides and local != rope else None,
        window=config.window if slides else None,
        sliding=config.sliding if slides else (),
        attention_scale=None
        if config.attention_scale == config.head_dim**-0.5
        else config.attention_scale,
        attention="auto",
        remat="none",
    )
