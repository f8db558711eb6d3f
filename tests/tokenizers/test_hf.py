"""Tokenizers of a tokenizer.json, made here with the library itself."""

import pytest

from clip_jax.config.schema import TokenizerConfig
from clip_jax.errors import UserError
from clip_jax.tokenizers import build

tokenizers = pytest.importorskip("tokenizers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "cat", "dog"]


def word_pieces(template=True) -> bytes:
    """BERT's kind: lower case, [CLS] and [SEP] around the words."""
    vocab = {w: i for i, w in enumerate(WORDS)}
    out = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    out.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    out.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    if template:
        out.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return out.to_str().encode()


def make(data, **changes):
    cfg = TokenizerConfig("hf", clean="none", **changes)
    return build(cfg, vocab_size=32, stored=data)


def test_rows_are_the_librarys_with_pads():
    tokenizer = make(word_pieces())
    rows = tokenizer(["A photo of a CAT", "zebra"], 8)
    assert rows.tolist() == [[2, 4, 5, 6, 4, 7, 3, 0], [2, 1, 3, 0, 0, 0, 0, 0]]
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id) == (9, 3, 0)


@pytest.mark.parametrize(("sticky", "last"), [(True, 3), (False, 6)])
def test_a_cut_row_ends_as_it_is_told(sticky, last):
    rows = make(word_pieces(), sticky_eos=sticky)(["a photo of a cat"], 4)
    assert rows.tolist() == [[2, 4, 5, last]]


def test_an_end_is_added_where_the_file_adds_none():
    assert make(word_pieces(template=False))(["a cat"], 4).tolist() == [[4, 7, 3, 0]]


def test_pads_can_be_chosen():
    assert make(word_pieces(), pad_id=1)(["cat"], 5).tolist() == [[2, 7, 3, 1, 1]]


def test_padding_and_truncation_of_the_file_do_not_reach_the_rows():
    inner = tokenizers.Tokenizer.from_str(word_pieces().decode())
    inner.enable_padding(pad_id=5, length=16)
    inner.enable_truncation(3)
    tokenizer = make(inner.to_str().encode())
    assert tokenizer.pad_id == 5
    assert tokenizer(["a photo of a cat"], 8).tolist() == [[2, 4, 5, 6, 4, 7, 3, 5]]


def test_it_is_rebuilt_from_its_bytes():
    first = make(word_pieces())
    again = make(first.to_bytes())
    assert again(["a dog"], 6).tolist() == first(["a dog"], 6).tolist()


def test_clipas_rows_have_no_end():
    rows = make(word_pieces(), keep_eos=False)(["a cat", "a photo of a cat"], 6)
    assert rows.tolist() == [[2, 4, 7, 0, 0, 0], [2, 4, 5, 6, 4, 0]]


def test_gemmas_end_is_not_its_piece_of_html():
    vocab = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "</s>": 3, "a": 4, "[UNK]": 5}
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    plain = make(inner.to_str().encode())
    assert plain.eos_id == 1 and plain(["a"], 4).tolist() == [[4, 1, 0, 0]]
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 3)]
    )
    assert make(inner.to_str().encode()).eos_id == 3


def test_messages():
    with pytest.raises(UserError, match="not a tokenizer.json"):
        make(b"{}")
    with pytest.raises(UserError, match="config.tokenizer.path: is empty"):
        build(TokenizerConfig("hf"), vocab_size=9)
    vocab = {"[UNK]": 0, "a": 1}
    bare = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    with pytest.raises(UserError, match="has no end-of-text"):
        make(bare.to_str().encode())
