"""SentencePiece: train a model on the captions, or use a model file.

Models trained here: pad 0, end-of-text 1, unknown 2, no start, byte fallback (so 259 pieces before
the first character). The same captions give the same bytes: one thread, no shuffling.

A model file keeps its own ids. A model without a pad piece is padded with end-of-text. SigLIP's
file (c4_en) has pad 0 but SigLIP fills its rows with 1: give `pad_id=1`; SigLIP 2 fills with 0.

Legend: n = captions, t = context.
Costs: about 6 us a caption to encode; training on 100,000 captions takes some 3 s.
"""

import io
import itertools
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import sentencepiece

from clip_jax.config.schema import TokenizerConfig
from clip_jax.errors import UserError, near
from clip_jax.tokenizers import canonicalize
from clip_jax.tokenizers.source import model_bytes

_QUIET = 3  # only what kills the process; all else arrives as an exception


def _valid(text: str) -> str:
    """Replaces lone surrogates (JSON may carry them), which have no UTF-8 form."""
    return text.encode("utf-8", "replace").decode()


CLEANERS: dict[str, Callable[[str], str]] = {
    "none": _valid,
    "lower": lambda text: _valid(text).lower(),
    "canonicalize": canonicalize.clean,
}
MODEL_TYPES = ("unigram", "bpe")


class SentencePiece:
    """Captions to rows of ids: pieces, end-of-text, pads.

    Args:
        model: a serialized SentencePiece model.
        clean: key of CLEANERS, applied to every caption first.
        sticky_eos: a caption that is cut still ends in end-of-text (big_vision's eos="sticky").
        pad_id: id that fills a row; -1 = the model's own, or end-of-text if it has none.
        where: origin of the model, for messages.

    Raises:
        UserError: the model cannot be read or has no end-of-text piece.
    """

    def __init__(
        self,
        model: bytes,
        *,
        clean: str,
        sticky_eos: bool,
        pad_id: int = -1,
        where: str = "tokenizer",
    ):
        self._model, self._processor = model, _processor(model, where)
        self._clean, self._sticky_eos = CLEANERS[clean], sticky_eos
        self.vocab_size: int = self._processor.get_piece_size()
        self.eos_id: int = self._processor.eos_id()
        if self.eos_id < 0:
            raise UserError(
                f"{where}: the model has no end-of-text piece (got eos_id -1); "
                "train it with an eos_id"
            )
        self.unk_id: int = self._processor.unk_id()
        own = self._processor.pad_id()
        self.pad_id: int = next(i for i in (pad_id, own, self.eos_id) if i >= 0)

    def __call__(self, texts: Sequence[str], context: int) -> np.ndarray:
        """Returns int32 (n, t)."""
        rows = np.full((len(texts), context), self.pad_id, np.int32)  # (n, t)
        encoded = self._processor.encode([self._clean(text) for text in texts], num_threads=1)
        for row, ids in zip(rows, encoded, strict=True):
            ids = [*ids, self.eos_id][:context]
            row[: len(ids)] = ids
            if self._sticky_eos:
                row[len(ids) - 1] = self.eos_id
        return rows

    def piece(self, number: int) -> str:
        """The text of an id."""
        return self._processor.id_to_piece(number)

    def to_bytes(self) -> bytes:
        """The model, for `build(stored=...)`."""
        return self._model


def _processor(model: bytes, where: str) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(model)
    except RuntimeError as e:
        raise UserError(
            f"{where}: not a SentencePiece model (got {len(model)} bytes); give a .model file"
        ) from e
    return processor


def train(captions: Iterable[str], *, vocab_size: int, model_type: str, clean: str) -> bytes:
    """Trains a model; deterministic.

    Every distinct word is one more training sentence. Without that, captions made from templates
    give pieces such as `lat in`: a word that is always followed by the same word is not a unit of
    its own to the seeds of the unigram model.

    Args:
        captions: all are used.
        vocab_size: pieces at most; few captions give fewer.
        model_type: one of MODEL_TYPES.
        clean: key of CLEANERS.

    Returns:
        The serialized model.

    Raises:
        UserError: no caption has text, or `vocab_size` is below the bytes and characters.
    """
    lines = [CLEANERS[clean](caption) for caption in captions]
    words = dict.fromkeys(word for line in lines for word in line.split())
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain(lines, words),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            byte_fallback=True,
            hard_vocab_limit=False,
            character_coverage=1.0,
            shuffle_input_sentence=False,
            num_threads=1,  # more threads give other pieces
            minloglevel=_QUIET,
        )
    except RuntimeError as e:
        raise _training_error(str(e), vocab_size, len(lines)) from e
    return model.getvalue()


def _training_error(message: str, vocab_size: int, num_captions: int) -> UserError:
    """One line for what SentencePiece says in its own words."""
    if too_small := re.search(r"(\d+) vs (\d+)", message):
        return UserError(
            "config.model.text.vocab_size: too small for the bytes and characters of the captions "
            f"(got {vocab_size}); use at least {too_small[2]}"
        )
    if "sentences_.empty()" in message or "all_chars_count" in message:
        return UserError(
            "tokenizer: no caption to train SentencePiece on "
            f"(got {num_captions}, none with text); check data.train, or set tokenizer.path"
        )
    return UserError(
        f"tokenizer: SentencePiece cannot be trained (got {' '.join(message.split())})"
    )


def build(
    cfg: TokenizerConfig,
    *,
    vocab_size: int,
    captions: Iterable[str] | None = None,
    stored: bytes | None = None,
) -> SentencePiece:
    """Builds from stored bytes, else from `cfg.path`, else trains on the captions."""
    _check("clean", cfg.clean, CLEANERS)
    _check("model_type", cfg.model_type, MODEL_TYPES)
    model, where = model_bytes(cfg, stored)
    if model is None:
        model = train(
            itertools.islice(captions or (), cfg.train_captions),
            vocab_size=vocab_size,
            model_type=cfg.model_type,
            clean=cfg.clean,
        )
    return SentencePiece(
        model, clean=cfg.clean, sticky_eos=cfg.sticky_eos, pad_id=cfg.pad_id, where=where
    )


def _check(field: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise UserError(
            f"config.tokenizer.{field}: unknown (got '{value}'); use one of {', '.join(known)}"
            + near(value, known)
        )
