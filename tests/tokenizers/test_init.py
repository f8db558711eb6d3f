"""`build`: which builder is called, with what, and what the user is told."""

import pathlib
import sys

import numpy as np
import pytest

from clip_jax import tokenizers
from clip_jax.config.schema import TokenizerConfig
from clip_jax.errors import UserError

CAPTIONS = [f"a photo of a {name}" for name in ("cat", "dog", "horse", "ship")]
OWN = """
import numpy as np
class Own:
    vocab_size, eos_id, pad_id = 12, 2, 0
    def __init__(self, **given): self.given = given
    def __call__(self, texts, context): return np.zeros((len(texts), context), np.int32)
    def to_bytes(self): return b"own"
def make(cfg, **given): return Own(cfg=cfg, **given)
"""


@pytest.fixture
def own_module(tmp_path: pathlib.Path, monkeypatch):
    (tmp_path / "own_tokenizer.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_tokenizer"
    sys.modules.pop("own_tokenizer", None)


@pytest.mark.parametrize("kind", ["sentencepiece", "clip_bpe"])
def test_what_is_built_keeps_the_protocol(kind):
    built = tokenizers.build(TokenizerConfig(kind=kind), vocab_size=49408, captions=CAPTIONS)
    rows = built(CAPTIONS, 24)
    assert rows.shape == (4, 24)
    assert rows.dtype == np.int32
    assert (rows < built.vocab_size).all()
    for row in rows.tolist():
        end = row.index(built.eos_id)
        assert set(row[end + 1 :]) == {built.pad_id}
    again = tokenizers.build(
        TokenizerConfig(kind=kind, path="/nowhere/at/all"),
        vocab_size=49408,
        stored=built.to_bytes(),
    )
    np.testing.assert_array_equal(again(CAPTIONS, 24), rows)


def test_a_function_of_the_users_own_gets_the_same_arguments(own_module):
    cfg = TokenizerConfig(kind=f"{own_module}:make", path="anything")
    built = tokenizers.build(cfg, vocab_size=12, captions=CAPTIONS, stored=b"own")
    assert built.given == {"cfg": cfg, "vocab_size": 12, "captions": CAPTIONS, "stored": b"own"}  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("nowhere_x:make", "no module 'nowhere_x'"),
        ("own_tokenizer:mak", "no function 'mak' in 'own_tokenizer'"),
        (":make", "no function 'make' in ''"),
    ],
)
def test_a_function_that_is_not_there(own_module, kind, said):
    with pytest.raises(UserError) as e:
        tokenizers.build(TokenizerConfig(kind=kind), vocab_size=10)
    assert str(e.value).startswith(f"config.tokenizer.kind: {said} (got '{kind}'); ")
    assert "\n" not in str(e.value)


def test_unknown_kind_names_the_nearest():
    with pytest.raises(UserError) as e:
        tokenizers.build(TokenizerConfig(kind="sentencepeice"), vocab_size=10)
    assert str(e.value) == (
        "config.tokenizer.kind: unknown (got 'sentencepeice'); use clip_bpe, hf, sentencepiece, "
        "wordpiece or package.module:function; did you mean 'sentencepiece'?"
    )


def test_a_token_table_with_too_few_rows_is_refused():
    with pytest.raises(UserError) as e:
        tokenizers.build(TokenizerConfig(kind="clip_bpe"), vocab_size=49407)
    assert str(e.value) == (
        "config.model.text.vocab_size: smaller than the tokenizer's (got 49407); "
        "set it to 49408 or more"
    )


@pytest.mark.parametrize("kind", ["sentencepiece", "clip_bpe"])
def test_a_missing_file_is_one_line(kind, tmp_path):
    path = str(tmp_path / "gone.model")
    with pytest.raises(UserError) as e:
        tokenizers.build(TokenizerConfig(kind=kind, path=path), vocab_size=49408)
    assert str(e.value) == (
        f"config.tokenizer.path: cannot be read (got {path}: No such file or directory); "
        "check the path"
    )
