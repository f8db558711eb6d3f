"""BERT's word pieces (Devlin et al. 2019) from its vocab.txt: one piece a line, ## within words.

The rows are those of HfTokenizer: [CLS], lower-cased pieces without accents, [SEP] (pads instead,
with `keep_eos=False`, as FLIP and CLIPA were trained).
"""

import importlib
from collections.abc import Iterable
from typing import Any

from clip_jax.config.schema import TokenizerConfig
from clip_jax.errors import UserError
from clip_jax.tokenizers import hf
from clip_jax.tokenizers.source import model_bytes

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def build(
    cfg: TokenizerConfig,
    *,
    vocab_size: int,
    captions: Iterable[str] | None = None,
    stored: bytes | None = None,
) -> hf.HfTokenizer:
    """Builds from stored bytes (a tokenizer.json), else from the vocab.txt at `cfg.path`.

    Raises:
        UserError: no path, no such file, or no BERT vocabulary.
    """
    del vocab_size, captions  # the vocabulary is given
    data, where = model_bytes(cfg, stored)
    if data is None:
        raise UserError("config.tokenizer.path: is empty; give the path of BERT's vocab.txt")
    if stored is None:
        data = as_json(data, where)
    return hf.HfTokenizer(
        data,
        clean="none",  # BERT's own normaliser is part of the file
        sticky_eos=cfg.sticky_eos,
        pad_id=cfg.pad_id,
        keep_eos=cfg.keep_eos,
        where=where,
    )


def as_json(vocab: bytes, where: str) -> bytes:
    """The tokenizer.json of a vocab.txt.

    Raises:
        UserError: the library is missing, or a piece that BERT needs.
    """
    try:
        tokenizers: Any = importlib.import_module("tokenizers")
    except ImportError as e:
        raise UserError(
            f"{where}: needs the package tokenizers; pip install 'clip-jax-pretrain[hf]'"
        ) from e
    try:
        ids = {word: i for i, word in enumerate(vocab.decode().splitlines())}
    except UnicodeDecodeError as e:
        raise UserError(f"{where}: not text ({e}); give the path of BERT's vocab.txt") from e
    if missing := [x for x in SPECIAL if x not in ids]:
        raise UserError(
            f"{where}: has no {', '.join(missing)}, so it is not BERT's; give its vocab.txt"
        )
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(x, ids[x]) for x in ("[CLS]", "[SEP]")],
    )
    made.enable_padding(pad_id=ids["[PAD]"], pad_token="[PAD]")  # where HfTokenizer finds the id
    return made.to_str().encode()
