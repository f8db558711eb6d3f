import hashlib
import io
import random
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from clip_jax.data import embedded
from clip_jax.data.embedded import glyphs
from clip_jax.errors import UserError


def read(folder, split):
    """(name, pixels, codepoint, font) of every record, in order."""
    skip = {"image": tfds.decode.SkipDecoding()}
    source = tfds.builder_from_directory(folder).as_data_source(split, decoders=skip)
    found = []
    for r in source:
        assert r["caption"] == r["name"]
        image = Image.open(io.BytesIO(r["image"]))
        assert (image.mode, image.size) == ("L", (32, 32))
        found.append((r["name"].decode(), image.tobytes(), r["codepoint"], r["font"].decode()))
    return found


@pytest.fixture(scope="module")
def splits(glyphs_folder):
    return {s: read(glyphs_folder, s) for s in ("train", "validation", "test")}


def names(records):
    return {r[0] for r in records}


def residue(text, n):
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % n


def test_counts(splits):
    # Another count is another benchmark: fonts or rules changed, so raise Glyphs.VERSION.
    assert {s: (len(names(r)), len(r)) for s, r in splits.items()} == {
        "train": (1400, 16928),
        "validation": (103, 1192),
        "test": (151, 1839),
    }
    test = "\n".join(sorted(names(splits["test"]))).encode()
    assert hashlib.sha256(test).hexdigest().startswith("271eee8fcc76ed2b")


def test_held_out_names_and_pictures_are_in_no_training_set(splits):
    earlier = []
    for split in ("train", "validation", "test"):
        assert names(splits[split]).isdisjoint(names(earlier))
        assert {r[1] for r in splits[split]}.isdisjoint(r[1] for r in earlier)
        earlier += splits[split]


def test_every_base_and_mark_of_a_held_out_name_is_trained(splits):
    words = [re.split(" with | and ", n) for n in names(splits["train"])]
    bases, marks = {w[0] for w in words}, {m for w in words for m in w[1:]}
    for name in names(splits["validation"]) | names(splits["test"]):
        base, *own = re.split(" with | and ", name)
        assert base in bases
        assert own and set(own) <= marks


def test_shares(splits):
    for split, records in splits.items():
        for name in names(records):
            held_out = " with " in name and residue(name, 6) == 0
            assert held_out == (split == "test")
            if split == "validation":
                assert " with " in name and residue("validation:" + name, 8) == 0


def test_records_are_what_they_say(splits):
    for records in splits.values():
        places = [(glyphs.FONTS.index(r[3]), r[2]) for r in records]
        assert places == sorted(set(places))  # font by font, by code point, none twice
    assert ("latin small letter o with diaeresis", 0xF6) not in {
        (r[0], r[2])
        for r in splits["test"]  # its picture is the Cyrillic one's
    }
    by_place = {(r[3], chr(r[2])): r for rs in splits.values() for r in rs}
    assert by_place["DejaVuSans", "A"][0] == "latin capital letter a"
    assert by_place["STIXGeneral", "ж"][0] == "cyrillic small letter zhe"
    ink = np.frombuffer(by_place["DejaVuSans", "H"][1], np.uint8).reshape(32, 32) > 60
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    assert rows[-1] == 24  # stands on the baseline, which is at 25
    assert rows[0] in (7, 8)  # capitals are 0.73 of the em of 23 pixels
    assert abs((columns[0] + columns[-1]) / 2 - 15.5) <= 1
    wide = np.frombuffer(by_place["DejaVuSans-Bold", "Ǳ"][1], np.uint8).reshape(32, 32)
    assert wide[:, 0].max() == 0 and wide[:, 2].max() == 255  # squeezed: its stem is not cut


def test_metadata_names_versions_and_pairs(glyphs_folder, splits):
    metadata = tfds.builder_from_directory(glyphs_folder).info.metadata
    assert {"pillow", "freetype", "matplotlib", "unicode", "pixels_sha256"} <= set(metadata)
    test = "\n".join(sorted(names(splits["test"]))).encode()
    assert metadata["test_names_sha256"] == hashlib.sha256(test).hexdigest()
    for split in ("validation", "test"):
        rs = splits[split]
        alike = {a[0] for a in rs for b in rs if a[1] == b[1] and a[0] != b[0]}
        assert metadata[f"{split}_names_alike"] == len(alike)
    assert metadata["test_names_alike"] == 4


def one_by_one(pictures):
    """The rules of `assign`, slowly."""

    def fits(name, others):
        base, *own = re.split(" with | and ", name)
        words = [re.split(" with | and ", o) for o in others]
        return (
            any(w[0] == base for w in words)
            and all(any(m in w[1:] for w in words) for m in own)
            and not any(p in pictures[o] for p in pictures[name] for o in others)
        )

    test = [n for n in pictures if " with " in n and residue(n, 6) == 0]
    rest = [n for n in pictures if n not in test]
    validation = [n for n in rest if " with " in n and residue("validation:" + n, 8) == 0]
    train = [n for n in rest if n not in validation]
    while unfit := [n for n in validation if not fits(n, train)]:
        validation = [n for n in validation if n not in unfit]
        train += unfit
    split = {n: "test" for n in test if fits(n, rest)}
    return split | dict.fromkeys(validation, "validation") | dict.fromkeys(train, "train")


def test_assign_on_made_up_names():
    dropped = returned = 0
    for seed in range(30):
        rng = random.Random(seed)
        pictures = {}
        for _ in range(80):
            marks = rng.sample(range(12), rng.randint(0, 2))
            name = f"x{rng.randrange(12)}" + " with " * bool(marks)
            name += " and ".join(f"m{m}" for m in marks)
            pictures[name] = {rng.randbytes(2) for _ in range(6)}
        split = glyphs.assign(pictures)
        assert split == one_by_one(pictures)
        dropped += len(pictures) - len(split)
        returned += sum(
            s == "train" and " with " in n and residue("validation:" + n, 8) == 0
            for n, s in split.items()
        )
    assert dropped and returned  # both rules were at work


def test_missing_font(tmp_path):
    with pytest.raises(UserError, match=r"lacks a font .*DejaVuSans.ttf\); reinstall matplotlib$"):
        list(glyphs._render_font(str(tmp_path), "DejaVuSans"))


@pytest.mark.slow
def test_rebuild_gives_the_same_records(splits, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_JAX_DATA", str(tmp_path))
    again = embedded.EMBEDDED["glyphs"]()
    assert {s: read(again, s) for s in splits} == splits
