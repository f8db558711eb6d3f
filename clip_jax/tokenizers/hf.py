"""Any tokenizer that Hugging Face ships as a tokenizer.json: BERT's, XLM-V's, mT5's, Gemma's.

Legend: n = captions, t = context.
"""

import importlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from clip_jax.config.schema import TokenizerConfig
from clip_jax.errors import UserError
from clip_jax.tokenizers.sentencepiece import CLEANERS
from clip_jax.tokenizers.source import model_bytes

# Most particular first: in Gemma's vocabulary </s> is a piece of HTML.
EOS = ("<eos>", "<|endoftext|>", "[SEP]", "</s>")


class HfTokenizer:
    """Captions to rows of ids, by the file's own normaliser, model and template.

    Args:
        data: tokenizer.json.
        clean: key of CLEANERS, applied to every caption first.
        sticky_eos: a caption that is cut still ends in end-of-text.
        pad_id: id that fills a row; -1 = the file's own, or 0.
        keep_eos: False = pads stand where end-of-text would, as CLIPA was trained.
        where: origin of the file, for messages.

    Raises:
        UserError: the library is missing, or the file is not a tokenizer with an end-of-text.
    """

    def __init__(
        self,
        data: bytes,
        *,
        clean: str,
        sticky_eos: bool,
        pad_id: int,
        keep_eos: bool = True,
        where: str,
    ):
        try:
            tokenizers: Any = importlib.import_module("tokenizers")
        except ImportError as e:
            raise UserError(
                f"{where}: needs the package tokenizers; pip install 'clip-jax-pretrain[hf]'"
            ) from e
        self._data, self._clean, self._sticky = data, CLEANERS[clean], sticky_eos
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(data.decode())
            padding = json.loads(data).get("padding") or {}
        except Exception as e:  # the library raises plain Exceptions
            raise UserError(f"{where}: not a tokenizer.json ({e}); get the file again") from e
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocab_size: int = self._tokenizer.get_vocab_size()
        known = [i for i in map(self._tokenizer.token_to_id, EOS) if i is not None]
        if not known:
            raise UserError(f"{where}: has no end-of-text; looked for {', '.join(EOS)}")
        added = self._tokenizer.encode("").ids[-1:]  # what the file itself puts at the end
        self.eos_id: int = added[0] if added and added[0] in known else known[0]
        self._keep_eos = keep_eos
        self.pad_id: int = pad_id if pad_id >= 0 else int(padding.get("pad_id", 0))

    def __call__(self, texts: Sequence[str], context: int) -> np.ndarray:
        """Returns int32 (n, t)."""
        rows = np.full((len(texts), context), self.pad_id, np.int32)
        encoded = self._tokenizer.encode_batch([self._clean(x) for x in texts])
        for row, item in zip(rows, encoded, strict=True):
            ids = item.ids
            if not ids or ids[-1] != self.eos_id:
                ids = [*ids, self.eos_id]
            cut = len(ids) > context
            ids = ids[:context]
            row[: len(ids)] = ids
            if cut and self._sticky:
                row[-1] = self.eos_id
        return rows if self._keep_eos else np.where(rows == self.eos_id, self.pad_id, rows)

    def to_bytes(self) -> bytes:
        """The file, for `build(stored=...)`."""
        return self._data


def build(
    cfg: TokenizerConfig,
    *,
    vocab_size: int,
    captions: Iterable[str] | None = None,
    stored: bytes | None = None,
) -> HfTokenizer:
    """Builds from stored bytes, else from `cfg.path`."""
    del vocab_size, captions  # the vocabulary is given
    data, where = model_bytes(cfg, stored)
    if data is None:
        raise UserError("config.tokenizer.path: is empty; give the path of a tokenizer.json")
    return HfTokenizer(
        data,
        clean=cfg.clean,
        sticky_eos=cfg.sticky_eos,
        pad_id=cfg.pad_id,
        keep_eos=cfg.keep_eos,
        where=where,
    )
