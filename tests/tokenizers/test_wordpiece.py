"""BERT's word pieces from a vocabulary file; by hand here, and as transformers cuts them."""

import pytest

from clip_jax.config.schema import TokenizerConfig
from clip_jax.errors import UserError
from clip_jax.tokenizers import build

pytest.importorskip("tokenizers")
# [PAD] is not 0 here, so that a fixed id would be seen.
PIECES = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "a", "photo", "##s", "of", "un", "##want", "##ed"]
PIECES += ["cat", ",", "cafe", "##want", "!", "中", "国"]
TEXTS = [
    "A photo of unwanted cats, a Café!",
    "zebra",
    "",
    "  a\tCAT\n",
    "中国 photos",
    "photo,cat",
    "unwantedcat",
]


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n")
    return path


def make(vocab, **changes):
    return build(TokenizerConfig("wordpiece", path=str(vocab), **changes), vocab_size=32)


def test_longest_piece_first_lower_case_without_accents(vocab):
    tokenizer = make(vocab)
    ids = lambda *words: [PIECES.index(w) for w in words]  # noqa: E731
    want = ids("[CLS]", "a", "photo", "of", "un") + [14] + ids("##ed", "cat", "##s", ",", "a")
    want += ids("cafe", "!", "[SEP]", "[PAD]", "[PAD]")
    assert tokenizer(TEXTS[:1], 16).tolist() == [want]
    unknown = ids("[CLS]", "[UNK]", "[SEP]", "[PAD]")
    assert tokenizer(["zebra"], 4).tolist() == [unknown]
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (3, 1, 17)


def test_clipas_rows_have_pads_for_the_end(vocab):
    rows = make(vocab, keep_eos=False, sticky_eos=False)(["a cat", "a cat of a photo"], 4)
    assert rows.tolist() == [[2, 4, 11, 1], [2, 4, 11, 7]]


def test_what_a_run_stores_makes_the_same_rows(vocab):
    first = make(vocab)
    again = build(TokenizerConfig("wordpiece"), vocab_size=32, stored=first.to_bytes())
    assert (again(TEXTS, 12) == first(TEXTS, 12)).all() and again.pad_id == 1


@pytest.mark.parity
def test_as_transformers_cuts_them(vocab):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizer(str(vocab))
    for text, row in zip(TEXTS, make(vocab)(TEXTS, 24).tolist(), strict=True):
        want = theirs(text)["input_ids"]
        assert row == want + [1] * (24 - len(want)), text


def test_refusals(vocab, tmp_path):
    with pytest.raises(UserError, match="tokenizer.path: is empty; give .* vocab.txt"):
        make("")
    other = tmp_path / "words.txt"
    other.write_text("[UNK]\na\n")
    with pytest.raises(UserError, match=r"words.txt: has no \[PAD\], \[CLS\], \[SEP\]"):
        make(other)
    other.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="words.txt: not text"):
        make(other)
