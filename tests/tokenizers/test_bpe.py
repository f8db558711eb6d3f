"""CLIP's byte-pair encoding against golden rows and against a slow encoder written here."""

import functools
import gzip
import html
import itertools
import json
import pathlib
import random

import ftfy
import numpy as np
import pytest
import regex

from clip_jax.config.schema import TokenizerConfig
from clip_jax.errors import UserError
from clip_jax.tokenizers import bpe

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tokenizer.jsonl"
CFG = TokenizerConfig(kind="clip_bpe")


@functools.cache
def tokenizer() -> bpe.ClipBPE:
    """Not a fixture that skips: without open_clip_torch's merges file these tests fail."""
    return bpe.build(CFG, vocab_size=49408)


def ids_of(text: str, context: int = 77) -> list[int]:
    return tokenizer()([text], context)[0].tolist()


# The oracle: strings instead of ids, no memo, no short cuts


@functools.cache
def reference_tables() -> tuple[dict[int, str], dict[str, int], dict[tuple[str, str], int]]:
    kept = [b for b in range(256) if chr(b).isprintable() and b != 32 and chr(b) != "\xa0"]
    lost = [b for b in range(256) if b not in kept]
    alphabet = {b: chr(b) for b in kept} | {b: chr(256 + i) for i, b in enumerate(lost)}
    text = gzip.decompress(pathlib.Path(bpe.find_merges()).read_bytes()).decode()
    merges = [tuple(line.split()) for line in text.split("\n")[1:48895]]
    symbols = list(alphabet.values())
    symbols += [s + "</w>" for s in symbols] + [a + b for a, b in merges]
    return (
        alphabet,
        {s: i for i, s in enumerate(symbols)},
        {(a, b): rank for rank, (a, b) in enumerate(merges)},
    )


def reference_word(word: str) -> list[int]:
    alphabet, id_of, ranks = reference_tables()
    parts = [alphabet[b] for b in word.encode("utf-8")]
    parts[-1] += "</w>"
    while True:
        pairs = [p for p in itertools.pairwise(parts) if p in ranks]
        if not pairs:
            return [id_of[p] for p in parts]
        best, joined, i = min(pairs, key=ranks.__getitem__), [], 0
        while i < len(parts):
            found = tuple(parts[i : i + 2]) == best
            joined.append("".join(best) if found else parts[i])
            i += 2 if found else 1
        parts = joined


def reference(text: str, context: int = 77) -> list[int]:
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    text = " ".join(text.split()).lower()
    pattern = (
        r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    )
    ids = [49406]
    for word in regex.findall(pattern, text, regex.IGNORECASE):
        special = {"<start_of_text>": 49406, "<end_of_text>": 49407}.get(word)
        ids += reference_word(word) if special is None else [special]
    ids.append(49407)
    if len(ids) > context:
        ids = [*ids[: context - 1], 49407]
    return ids + [0] * (context - len(ids))


def test_every_golden_row_is_exact():
    lines = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    want = [line["ids"] + [0] * (77 - len(line["ids"])) for line in lines]
    got = tokenizer()([line["text"] for line in lines], 77)
    assert len(lines) == 1500
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, want)


ASCII = [chr(i) for i in range(128)]
WORDS = ["a photo of", "the", "it's", "''s", "they'LL", "DOGS", "x86", "1234", "don't!", "...", "_"]
MARKUP = [
    "&amp;",
    "&amp;lt;",
    "&#39;",
    "&nbsp",
    "<b>",
    "<start_of_text>",
    "<END_of_text>",
    "<",
    "&",
]
OTHER = list("éÉßİıſK中文日本हि👍🏽\u200d\u0301\xa0\x85\u2028\ufeff\ufffdﬁ½²٣“’ÃƒÂ©") + [
    "\ud83d",
    "â€™",
]


@pytest.mark.parametrize(
    "alphabet",
    [ASCII, ASCII + WORDS + MARKUP, WORDS + MARKUP + OTHER + [" "] * 9, ASCII + OTHER],
    ids=["ascii", "markup", "unicode", "mixed"],
)
def test_random_strings_equal_the_slow_encoder(alphabet):
    rng = random.Random(0)
    texts = ["".join(rng.choices(alphabet, k=rng.randint(0, 24))) for _ in range(1000)]
    got = tokenizer()(texts, 77).tolist()
    for text, row in zip(texts, got, strict=True):
        assert row == reference(text), repr(text)


def test_random_letters_merge_like_the_slow_encoder():
    rng = random.Random(1)
    for k in range(1, 200):
        word = "".join(rng.choices("aeinorst" if k % 2 else "ab", k=k))
        ids = [*map(int, np.frombuffer(tokenizer()._chunk(word), np.int32))]
        assert ids == reference_word(word), word


def test_order_of_calls_does_not_matter():
    texts = ["a dog's life", "A DOG'S LIFE", "a dog's", "dog's a"]
    together = tokenizer()(texts, 16)
    alone = [bpe.ClipBPE(tokenizer().to_bytes())([text], 16)[0] for text in texts]
    np.testing.assert_array_equal(together, alone)


def test_cut_rows_end_in_end_of_text():
    assert ids_of("a photo of a cat", 4) == [49406, 320, 1125, 49407]
    assert ids_of("a photo of a cat", 7) == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert ids_of("a photo of a cat", 9) == [49406, 320, 1125, 539, 320, 2368, 49407, 0, 0]
    assert ids_of("a", 1) == [49407]


def test_no_captions_give_no_rows():
    assert tokenizer()([], 77).shape == (0, 77)


def test_rows_may_be_written():
    tokenizer()(["a cat"], 77)[0, 0] = 1
    assert ids_of("a cat")[0] == 49406


def test_memo_is_bounded(monkeypatch):
    monkeypatch.setattr(bpe, "_MAX_CHUNKS", 10)
    own = bpe.ClipBPE(tokenizer().to_bytes())
    texts = [f"word{i}" for i in range(35)] + ["x" * 1000]
    np.testing.assert_array_equal(own(texts, 8), [reference(t, 8) for t in texts])
    assert 0 < len(own._chunks) <= 10
    assert "x" * 1000 not in own._chunks


def test_round_trip_through_bytes(tmp_path):
    data = tokenizer().to_bytes()
    again = bpe.build(
        TokenizerConfig(kind="clip_bpe", path=str(tmp_path / "gone")), vocab_size=49408, stored=data
    )
    assert again.to_bytes() == data
    np.testing.assert_array_equal(
        again(["a red fox, it's 12"], 16)[0], ids_of("a red fox, it's 12", 16)
    )


@pytest.mark.parametrize("form", ["openai_gz", "openai_plain", "hf_plain", "hf_crlf", "hf_gz"])
def test_forms_of_the_merges_file(tmp_path, form):
    full = gzip.decompress(pathlib.Path(bpe.find_merges()).read_bytes())
    hf = b"\n".join([b"#version: 0.2", *full.split(b"\n")[1:48895]]) + b"\n"
    forms = {
        "openai_gz": gzip.compress(full, 1),
        "openai_plain": full,
        "hf_plain": hf,
        "hf_crlf": hf.replace(b"\n", b"\r\n"),
        "hf_gz": gzip.compress(hf, 1),
    }
    path = tmp_path / "merges"
    path.write_bytes(forms[form])
    built = bpe.build(TokenizerConfig(kind="clip_bpe", path=str(path)), vocab_size=49408)
    assert built.to_bytes() == tokenizer().to_bytes()


def broken_files() -> dict[str, bytes]:
    plain = tokenizer().to_bytes()
    return {
        "empty": b"",
        "html": b"<html>not found</html>",
        "binary": bytes(range(256)) * 9,
        "cut": plain[:-30],
        "cut_gz": gzip.compress(plain, 1)[:-30],
        "swapped": plain.replace(b"\nt h\na n\n", b"\na n\nt h\n"),
    }


@pytest.mark.parametrize("name", ["empty", "html", "binary", "cut", "cut_gz", "swapped"])
def test_other_files_are_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(broken_files()[name])
    with pytest.raises(UserError) as e:
        bpe.build(TokenizerConfig(kind="clip_bpe", path=str(path)), vocab_size=49408)
    assert str(e.value).startswith(f"config.tokenizer.path: {path}: not the merges of CLIP (got ")
    assert "bpe_simple_vocab_16e6.txt.gz" in str(e.value)
    assert "\n" not in str(e.value)


def test_broken_merges_of_a_checkpoint_say_so():
    with pytest.raises(UserError, match=r"^tokenizer of the checkpoint: not the merges of CLIP"):
        bpe.build(CFG, vocab_size=49408, stored=b"junk")


def no_packages(monkeypatch):
    monkeypatch.setattr(bpe.importlib.util, "find_spec", lambda name: None)
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"])
def test_hugging_face_cache_is_searched(tmp_path, monkeypatch, variable):
    no_packages(monkeypatch)
    below = {"HF_HUB_CACHE": "", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}
    hub = tmp_path / below.get(variable, ".cache/huggingface/hub")
    folder = hub / "models--openai--clip-vit-base-patch32" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "merges.txt").write_bytes(tokenizer().to_bytes())
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    monkeypatch.setenv(variable, str(tmp_path))
    assert bpe.find_merges() == str(folder / "merges.txt")


def test_no_merges_anywhere_is_one_line(tmp_path, monkeypatch):
    no_packages(monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError) as e:
        bpe.build(CFG, vocab_size=49408)
    assert "pip install --no-deps open_clip_torch" in str(e.value)
    assert "\n" not in str(e.value)
