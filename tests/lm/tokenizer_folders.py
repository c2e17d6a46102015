"""Small folders as Qwen2.5, Llama 3 and Gemma have them, for tests of tokenizers."""

import json

import tokenizers

TEXTS = [
    "What is 12 * 34? It is 408.",
    " two  spaces, a\ttab\n\nand lines ",
    "naïve café, 東京 and 🙂👩‍🚀 !",
    "x",
    "",
    "I 'm here . Is n't it ?",
]
CHATS = [
    [{"role": "user", "content": " 2+2? "}],
    [
        {"role": "user", "content": "Café?"},
        {"role": "assistant", "content": "Oui 🙂."},
        {"role": "user", "content": "1 < 2 & 3"},
        {"role": "assistant", "content": "\n408"},
    ],
]
SYSTEM = [{"role": "system", "content": "Be brief."}]

QWEN = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nHelp.<|im_end|>\\n' }}
{%- endif %}
{%- if tools %}{{- '# Tools' }}{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if loop.first and message.role == 'system' %}{%- continue %}{%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if thinking is defined and not thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
LLAMA = """{{- bos_token }}
{%- if not date is defined %}
    {%- if strftime_now is defined %}{%- set date = strftime_now('%d %b %Y') %}
    {%- else %}{%- set date = '26 Jul 2024' %}{%- endif %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
FAMILIES = {
    "qwen": (QWEN, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
    "llama": (
        LLAMA,
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
        + ["<|eot_id|>"],
    ),
    "gemma": (GEMMA, ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]),
}
NAMES = {
    "qwen": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "add_bos_token": False},
    "llama": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "gemma": {
        "bos_token": {"__type": "AddedToken", "content": "<bos>", "lstrip": False},
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "add_bos_token": True,
    },
}


def byte_level(special):
    """A small byte-level BPE, as Qwen and Llama have."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator([*TEXTS[:1] * 5, "system user assistant\n\n\n"] * 3, trainer)
    return model


def byte_fallback(special):
    """A small BPE of characters that falls back to bytes, as Gemma has."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    tokens = [*special, "<unk>", *bytes_, *"▁abcdeimnostuwhr0123\n.?", "is", "▁is", "▁t"]
    merges = [("i", "s"), ("▁", "is"), ("▁", "t")]
    vocab = {token: i for i, token in enumerate(tokens)}
    model = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    model.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    decoders = tokenizers.decoders
    model.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    model.add_special_tokens(special)
    return model


def save(folder, family, **config):
    """Writes a folder as such models have it; what is in `config` replaces the family's."""
    template, special = FAMILIES[family]
    model = byte_fallback(special) if family == "gemma" else byte_level(special)
    if family != "qwen":
        bos = {"llama": "<|begin_of_text|>", "gemma": "<bos>"}[family]
        model.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, special.index(bos))]
        )
    folder.mkdir(exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": template,
        **NAMES[family],
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
