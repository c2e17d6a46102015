"""The tokenizer of bytes as files of a Hugging Face folder, so that other programs read it too."""

import json
import pathlib

__all__ = ["save"]

SPECIAL = ("<pad>", "<bos>", "<eos>")


def save(folder: str | pathlib.Path) -> None:
    """Writes what `jrl.lm.tokenizer.load`, or transformers, loads as `bytes_tokenizer()`.

    The same ids, a beginning of sequence where special tokens are added, and no chat template.
    The folder is made. Raises: ImportError if `tokenizers` is missing.

    >>> import tempfile
    >>> from jrl.lm import tokenizer
    >>> folder = tempfile.mkdtemp()
    >>> save(folder)
    >>> tokenizer.load(folder).encode("hé<eos>", add_special_tokens=True)
    [257, 104, 195, 169, 258]
    """
    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    except ImportError as error:
        raise ImportError("saving a tokenizer needs tokenizers: pip install 'jrl[lm]'") from error
    vocabulary = {_letter(byte): byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], fuse_unk=False))
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    bos = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(zip(("pad_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _letter(byte: int) -> str:
    """Returns the character that byte-level tokenizers write for a byte, as GPT-2's does.

    Bytes that are printable characters of Latin-1 stand for themselves; the others, in order,
    for those from U+0100 on.
    """
    if _printable(byte):
        return chr(byte)
    return chr(256 + sum(not _printable(other) for other in range(byte)))


def _printable(byte: int) -> bool:
    return 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255
