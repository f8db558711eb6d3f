"""What stages read: pixels are decoded once; tokenizers whose ids the weights know."""

import collections
import dataclasses
import gc
import io
import weakref

import numpy as np
import pytest
import sentencepiece as spm

import tiny
from clip_jax.config.load import checked, load
from clip_jax.config.presets import MODELS
from clip_jax.config.schema import StageConfig
from clip_jax.config.stages import expand
from clip_jax.data import pipeline
from clip_jax.errors import UserError
from clip_jax.interop import read
from clip_jax.train.inputs import Inputs, make_tokenizer
from clip_jax.train.stages import Stage

pytestmark = pytest.mark.core
CAPTIONS = [f"a {size} {colour} square" for size in ("small", "large") for colour in ("red", "tan")]


def config(name, path="x", *flags):
    flags = (f"--config.tokenizer.path={path}", "--config.data.epoch_size=51_200", *flags)
    return load(f"finetune:{name}", flags, needs_data=False)


@pytest.fixture
def spiece(tmp_path):
    """Ids as in SigLIP's c4_en: pad 0, end-of-text 1, though the model's rows are filled with 1."""
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS), model_writer=model, vocab_size=60, minloglevel=3,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    return tmp_path / "spiece.model"


def test_the_config_is_that_of_the_weights():
    for name, model in MODELS.items():
        assert read.contradictions(model, config(name).model) == {}, name


@pytest.mark.parametrize(("name", "pad"), [("ViT-B-16-SigLIP", 1), ("ViT-B-16-SigLIP2", 0)])
def test_siglip(name, pad, spiece):
    tokenizer = make_tokenizer(config(name, spiece), (), None)
    assert tokenizer.eos_id == 1 and tokenizer(["a, Red"], 12)[0, -2:].tolist() == [pad, pad]


def test_another_pad_is_named_with_both_ways_out(spiece):
    cfg = config("ViT-B-16-SigLIP", spiece, "--config.tokenizer.pad_id=-1")
    with pytest.raises(UserError) as e:
        make_tokenizer(cfg, (), None)
    assert str(e.value) == (
        "config.model.text.pad_id: is 1, but the tokenizer's is 0; set it so, or "
        "config.tokenizer.pad_id=1"
    )


def test_clipa(tmp_path):
    pytest.importorskip("tokenizers")
    unused = [f"[unused{i}]" for i in range(99)]  # the ids of bert-base-uncased
    pieces = ["[PAD]", *unused, "[UNK]", "[CLS]", "[SEP]", "red", "cat"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tokenizer = make_tokenizer(config("ViT-L-14-CLIPA", tmp_path / "vocab.txt"), (), None)
    assert tokenizer(["a Red cat"], 6).tolist() == [[101, 100, 103, 104, 0, 0]]  # no [SEP]


@pytest.mark.parametrize(
    ("name", "words", "row"),
    [
        ("ViT-L-14-worldwide", "<pad> </s> <unk> red Red!", [3, 1, 0]),  # mT5's: canonical text
        ("ViT-H-14-worldwide-quickgelu", "<s> <pad> </s> <unk> red Red!", [5, 2, 1]),  # XLM-V's
    ],
)
def test_worldwide(name, words, row, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    vocab = {word: i for i, word in enumerate(words.split())}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    (tmp_path / "tokenizer.json").write_text(made.to_str())
    tokenizer = make_tokenizer(config(name, tmp_path / "tokenizer.json"), (), None)
    assert tokenizer(["Red!"], 3).tolist() == [row]


@pytest.mark.parametrize("name", ["ViT-L-14-CLIPA", "ViT-H-14-worldwide"])
def test_without_its_file(name):
    with pytest.raises(UserError, match=r"config.tokenizer.path: is empty; give the path of"):
        make_tokenizer(config(name, ""), (), None)


def test_stages_share_decoded_pixels_and_no_resized_ones(tmp_path, monkeypatch):
    """Each image is decoded once for all stages with its data, and seen in each at its own size."""
    folders = [str(tiny.write_folder(tmp_path / name, 16)) for name in "ab"]
    for i in range(16):  # other pixels under the same numbers
        (tmp_path / "b" / f"{i:04d}.png").write_bytes(tiny.png(100 + i, (0, 0, 255)))
    changes = {
        "small": (),
        "large": ("model.image.size=24",),
        "cut": ("data.crop_scale=(0.5,1.0)",),
        "other": (f"data.train.paths={folders[1]}",),
    }
    named = tuple(StageConfig(k, ("num_steps=4", *v)) for k, v in changes.items())
    cfg = tiny.config(folders[0], stages=named)
    cfg = checked(dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, cache=True)))
    parts = [
        Stage(x.name, x.cfg, x.first, x.last, None, i, len(named))
        for i, x in enumerate(expand(cfg))
    ]
    decoded: collections.Counter[bytes] = collections.Counter()
    plain = pipeline.decode_image

    def decode(data, channels):
        decoded[data] += 1
        return plain(data, channels)

    monkeypatch.setattr(pipeline, "decode_image", decode)
    data = Inputs(str(tmp_path), None)
    data.open(parts[:2])
    data.open(parts[2:])  # as a restart does, in turn
    where = np.arange(16)
    got = {s.name: data.pipelines[s.index].examples(where, where).arrays for s in parts}
    assert set(decoded.values()) == {1} and len(decoded) == 32
    for stage in parts:
        uncached = dataclasses.replace(stage.cfg.data, cache=False)
        fresh = dataclasses.replace(data.pipelines[stage.index], data=uncached, kept={})
        side = stage.cfg.model.image.size
        assert got[stage.name]["image"].shape == (16, side, side, 3)
        want = fresh.examples(where, where).arrays
        np.testing.assert_array_equal(got[stage.name]["image"], want["image"], stage.name)
    other = weakref.ref(data.pipelines[3].source)
    del fresh
    data.close(parts[3])
    gc.collect()
    assert other() is None
