"""SentencePiece: training, encoding, and what the user is told."""

import io
from typing import Any

import numpy as np
import pytest
import sentencepiece as spm

from clip_jax.config.schema import TokenizerConfig
from clip_jax.errors import UserError
from clip_jax.tokenizers import sentencepiece

LETTERS = ["a", "b", "g", "m", "omega", "theta"]
MARKS = ["acute", "grave", "double acute", "dot below"]
CAPTIONS = [
    f"{script} {case} letter {letter} with {mark}"
    for script in ("latin", "greek")
    for case in ("small", "capital")
    for letter in LETTERS
    for mark in MARKS
]


def built(captions=CAPTIONS, *, vocab_size=400, **fields) -> sentencepiece.SentencePiece:
    return sentencepiece.build(TokenizerConfig(**fields), vocab_size=vocab_size, captions=captions)


def plain(model: bytes) -> spm.SentencePieceProcessor:
    return spm.SentencePieceProcessor(model_proto=model)


def foreign(**ids: Any) -> bytes:
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        minloglevel=3,
        **ids,
    )
    return model.getvalue()


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_training_twice_gives_the_same_bytes(model_type):
    first, second = (built(model_type=model_type).to_bytes() for _ in range(2))
    assert first == second
    assert plain(first).get_piece_size() <= 400


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_ids_of_our_models(model_type):
    tokenizer = built(model_type=model_type)
    own = plain(tokenizer.to_bytes())
    assert (tokenizer.pad_id, tokenizer.eos_id) == (0, 1)
    assert (own.pad_id(), own.eos_id(), own.unk_id(), own.bos_id()) == (0, 1, 2, -1)
    assert tokenizer.vocab_size == own.get_piece_size()


def test_words_of_a_template_become_pieces():
    text = "latin small letter b with"
    whole = ["▁latin", "▁small", "▁letter", "▁b", "▁with"]
    assert plain(built().to_bytes()).encode(text, out_type=str) == whole
    assert plain(foreign()).encode(text, out_type=str) != whole  # the captions alone


def test_rows_are_pieces_end_pads():
    tokenizer = built()
    texts = ["latin small letter g", "", "Greek CAPITAL letter omega with acute", "日本 🙂"]
    rows = tokenizer(texts, 32)
    assert rows.dtype == np.int32
    for text, row in zip(texts, rows.tolist(), strict=True):
        ids = plain(tokenizer.to_bytes()).encode(text.lower())
        assert row == [*ids, 1] + [0] * (31 - len(ids))
        assert 2 not in row  # byte fallback: nothing is unknown
    assert tokenizer([], 32).shape == (0, 32)


@pytest.mark.parametrize("context", [1, 3, 5, 6, 7])
def test_sticky_end_of_text(context):
    text = "latin small letter b with"
    ids = [*plain(built().to_bytes()).encode(text), 1]
    assert len(ids) == 6
    loose = built(sticky_eos=False)([text], context)[0].tolist()
    sticky = built(sticky_eos=True)([text], context)[0].tolist()
    if context >= len(ids):
        assert loose == sticky == ids + [0] * (context - len(ids))
    else:
        assert loose == ids[:context]
        assert sticky == [*ids[: context - 1], 1]


@pytest.mark.parametrize(
    ("clean", "seen"),
    [
        ("none", "Latin_small &amp; LETTER, É"),
        ("lower", "latin_small &amp; letter, é"),
        ("canonicalize", "latin small letter é"),
    ],
)
def test_cleaning(clean, seen):
    tokenizer = built(clean=clean)
    ids = plain(tokenizer.to_bytes()).encode(seen)
    row = tokenizer(["Latin_small &amp; LETTER, É"], 64)[0].tolist()
    assert row[: len(ids) + 1] == [*ids, 1]


def test_training_text_is_cleaned_too():
    upper = [caption.upper() for caption in CAPTIONS]
    assert built(upper, clean="lower").to_bytes() == built().to_bytes()
    assert built(upper, clean="none").to_bytes() != built().to_bytes()


@pytest.mark.parametrize("clean", list(sentencepiece.CLEANERS))
def test_lone_surrogates_do_no_harm(clean):
    tokenizer = built([*CAPTIONS, "latin \ud83d"], clean=clean)
    assert 1 in tokenizer(["latin \ud83d"], 16)[0]


def test_trains_on_train_captions_and_no_more():
    seen = []
    endless = (seen.append(c) or c for c in CAPTIONS * 99)
    tokenizer = built(endless, train_captions=48)
    assert len(seen) == 48
    assert tokenizer.to_bytes() == built(CAPTIONS[:48]).to_bytes()


def test_round_trip_through_bytes():
    tokenizer = built()
    again = sentencepiece.build(
        TokenizerConfig(path="/nowhere/at/all"), vocab_size=7, stored=tokenizer.to_bytes()
    )
    assert again.to_bytes() == tokenizer.to_bytes()
    np.testing.assert_array_equal(again(CAPTIONS, 16), tokenizer(CAPTIONS, 16))


@pytest.mark.parametrize(
    ("ids", "eos", "pad"),
    [
        ({"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}, 1, 0),
        ({"pad_id": 3, "eos_id": 2, "unk_id": 0, "bos_id": 1}, 2, 3),
        ({"pad_id": -1, "eos_id": 2, "unk_id": 0, "bos_id": 1}, 2, 2),
    ],
)
def test_a_model_file_keeps_its_ids(tmp_path, ids, eos, pad):
    path = tmp_path / "own.model"
    path.write_bytes(foreign(**ids))
    tokenizer = sentencepiece.build(TokenizerConfig(path=str(path)), vocab_size=400)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (eos, pad)
    assert tokenizer([""], 3)[0].tolist() == [eos, pad, pad]
    assert tokenizer.to_bytes() == path.read_bytes()


def test_siglip_fills_with_end_of_text():
    model = foreign(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    row = sentencepiece.SentencePiece(model, clean="canonicalize", sticky_eos=True, pad_id=1)
    assert row([""], 3)[0].tolist() == [1, 1, 1]


def test_a_model_without_end_of_text_is_refused():
    with pytest.raises(UserError, match=r"^tokenizer of the checkpoint: the model has no end-of-"):
        sentencepiece.build(TokenizerConfig(), vocab_size=400, stored=foreign(eos_id=-1, bos_id=-1))


@pytest.mark.parametrize("data", [b"", b"junk" * 99, b"\x00"], ids=["empty", "junk", "zero"])
def test_an_unreadable_model_is_one_line(tmp_path, data, capfd):
    path = tmp_path / "bad.model"
    path.write_bytes(data)
    with pytest.raises(UserError) as e:
        sentencepiece.build(TokenizerConfig(path=str(path)), vocab_size=400)
    assert str(e.value) == (
        f"config.tokenizer.path: {path}: not a SentencePiece model (got {len(data)} bytes); "
        "give a .model file"
    )
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_too_small_a_vocabulary_names_the_least(model_type):
    with pytest.raises(UserError) as e:
        built(vocab_size=270, model_type=model_type)
    head, least = str(e.value).split("; use at least ")
    assert head == (
        "config.model.text.vocab_size: too small for the bytes and characters of the captions "
        "(got 270)"
    )
    assert built(vocab_size=int(least), model_type=model_type).vocab_size <= int(least)
    with pytest.raises(UserError, match="too small"):
        built(vocab_size=int(least) - 1, model_type=model_type)


@pytest.mark.parametrize("captions", [None, [], ["", "  "]], ids=["none", "no", "blank"])
def test_no_captions(captions):
    with pytest.raises(UserError, match=r"^tokenizer: no caption to train SentencePiece on \(got "):
        built(captions)


def test_senseless_vocabulary_is_one_line():
    with pytest.raises(
        UserError, match=r"^tokenizer: SentencePiece cannot be trained \(got [^\n]*$"
    ):
        built(vocab_size=0)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("clean", "lowr", "use one of none, lower, canonicalize; did you mean 'lower'?"),
        ("model_type", "unigrm", "use one of unigram, bpe; did you mean 'unigram'?"),
    ],
)
def test_unknown_words_are_refused(field, value, said):
    with pytest.raises(UserError) as e:
        built(**{field: value})
    assert str(e.value) == f"config.tokenizer.{field}: unknown (got '{value}'); {said}"


def test_sentencepiece_itself_is_silent(capfd):
    built()(["latin"], 8)
    assert capfd.readouterr() == ("", "")
