"""Captions to rows of token ids: `build(cfg.tokenizer, vocab_size=...)(texts, context)`."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from clip_jax.config.extend import resolve
from clip_jax.config.schema import TokenizerConfig
from clip_jax.errors import UserError
from clip_jax.tokenizers import bpe, hf, sentencepiece, wordpiece


class Tokenizer(Protocol):
    """What `build` returns, and what a tokenizer of the user's own must offer."""

    vocab_size: int
    eos_id: int
    pad_id: int

    def __call__(self, texts: Sequence[str], context: int) -> np.ndarray:
        """Returns int32 (len(texts), context): ids, the end-of-text id, pads."""
        ...

    def to_bytes(self) -> bytes:
        """The model or merges file: a run stores it and is rebuilt from it."""
        ...


class _Missing:
    """Stands where a tokenizer would, and says why there is none when it is asked."""

    vocab_size = eos_id = pad_id = 0

    def __init__(self, why: str):
        self._why = why

    def __call__(self, texts: Sequence[str], context: int) -> np.ndarray:
        raise UserError(self._why)

    def to_bytes(self) -> bytes:
        raise UserError(self._why)


def missing(why: str) -> Tokenizer:
    """For a model that came without: images can be embedded, texts raise UserError(why)."""
    return _Missing(why)


def is_missing(tokenizer: Tokenizer) -> bool:
    """Whether it is one of `missing`."""
    return isinstance(tokenizer, _Missing)


TOKENIZERS: dict[str, Callable[..., Tokenizer]] = {
    "sentencepiece": sentencepiece.build,
    "clip_bpe": bpe.build,
    "hf": hf.build,
    "wordpiece": wordpiece.build,
}


def build(
    cfg: TokenizerConfig,
    *,
    vocab_size: int,
    captions: Iterable[str] | None = None,
    stored: bytes | None = None,
) -> Tokenizer:
    """Builds the tokenizer of a run.

    Args:
        cfg: `kind` is a key of TOKENIZERS, or 'package.module:function' for a function of the
            user's own, which is called with these same arguments.
        vocab_size: rows of the token table; the size of a model that is trained here.
        captions: training text for SentencePiece; read only when nothing else is there, and at
            most `cfg.train_captions` of them.
        stored: bytes of `Tokenizer.to_bytes` from a checkpoint; they win over `cfg.path`.

    Raises:
        UserError: unknown kind, a file that is not what it should be, too few captions, or more
            ids than `vocab_size`.
    """
    make = resolve(cfg.kind, TOKENIZERS, "config.tokenizer.kind")
    tokenizer = make(cfg, vocab_size=vocab_size, captions=captions, stored=stored)
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"config.model.text.vocab_size: smaller than the tokenizer's (got {vocab_size}); "
            f"set it to {tokenizer.vocab_size} or more"
        )
    return tokenizer
