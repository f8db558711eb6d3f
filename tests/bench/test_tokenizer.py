"""The tokenizer benchmark runs and says what it measured; no test looks at the rates."""

from clip_jax.bench import tokenizer
from clip_jax.config.schema import TokenizerConfig
from clip_jax.tokenizers import bpe


def test_it_prints_a_line_for_each(capsys, monkeypatch):
    ours = bpe.build(TokenizerConfig(kind="clip_bpe"), vocab_size=49408)
    monkeypatch.setattr(tokenizer, "load_peer", lambda: lambda texts: ours(texts, 77))
    assert tokenizer.main(["--captions", "50", "--rounds", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("50 captions, ")
    assert lines[2] == "50 of 50 rows are equal"
    assert [line.split()[0] for line in lines[3:]] == ["ours", "open_clip"]


def test_without_the_peer_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(tokenizer, "load_peer", lambda: "No module named 'torch'")
    assert tokenizer.main(["--captions", "50", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "open_clip not measured: No module named 'torch'"
    assert [line.split()[0] for line in lines[3:]] == ["ours"]


def test_captions_are_fixed_and_varied():
    merges = bpe.build(TokenizerConfig(kind="clip_bpe"), vocab_size=49408).to_bytes()
    captions = tokenizer.make_captions(2000, merges)
    assert captions == tokenizer.make_captions(2000, merges)
    assert len(set(captions)) == 2000
    assert len({word for caption in captions for word in caption.split()}) > 2000
