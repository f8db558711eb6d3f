"""A tokenizer in the files that transformers reads."""

import json

from clip_jax.config.schema import Config
from clip_jax.errors import UserError
from clip_jax.tokenizers import Tokenizer
from clip_jax.tokenizers.bpe import ClipBPE, vocabulary
from clip_jax.tokenizers.hf import HfTokenizer
from clip_jax.tokenizers.sentencepiece import SentencePiece

_START, _END = "<|startoftext|>", "<|endoftext|>"


def tokenizer_files(tokenizer: Tokenizer, cfg: Config, *, required: bool) -> dict[str, bytes]:
    """{file name: contents}.

    Args:
        tokenizer: of the model.
        cfg: of the model.
        required: whether a tokenizer that transformers lacks is an error; else it gives no file.

    Raises:
        UserError: the tokenizer is missing, or of a kind without such files.
    """
    if isinstance(tokenizer, ClipBPE):
        merges = tokenizer.to_bytes()
        settings = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": cfg.model.text.context,
            "do_lower_case": True,
            "bos_token": _START,
            "eos_token": _END,
            "unk_token": _END,
            "pad_token": "!" if tokenizer.pad_id == 0 else _END,
        }
        tokens = {k: v for k, v in settings.items() if k.endswith("_token")}
        return {
            "vocab.json": json.dumps(vocabulary(merges), ensure_ascii=False).encode(),
            "merges.txt": merges,
            "tokenizer_config.json": _text(settings),
            "special_tokens_map.json": _text(tokens),
        }
    if isinstance(tokenizer, HfTokenizer):
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": cfg.model.text.context,
        }
        return {
            "tokenizer.json": tokenizer.to_bytes(),
            "tokenizer_config.json": _text(settings),
        }
    # SiglipTokenizer strips punctuation: for other captions it would give other ids
    if isinstance(tokenizer, SentencePiece) and cfg.tokenizer.clean == "canonicalize":
        settings = {
            "tokenizer_class": "SiglipTokenizer",
            "model_max_length": cfg.model.text.context,
            "do_lower_case": True,
            "eos_token": tokenizer.piece(tokenizer.eos_id),
            "pad_token": tokenizer.piece(tokenizer.pad_id),
            "unk_token": tokenizer.piece(tokenizer.unk_id),
        }
        return {"spiece.model": tokenizer.to_bytes(), "tokenizer_config.json": _text(settings)}
    if not required:
        return {}
    tokenizer.to_bytes()  # a missing one says why
    raise UserError("config.tokenizer.kind: transformers has no such tokenizer")


def _text(data: object) -> bytes:
    return json.dumps(data, indent=2, ensure_ascii=False).encode() + b"\n"
