"""Files against names, with files that cannot be read among them."""

import dataclasses

import numpy as np

import tiny
from clip_jax.errors import UserError
from clip_jax.inference.classify import classify_files

NAMES = list(tiny.COLOURS)


def test_numbers_are_those_of_the_model(model, tmp_path):
    paths = []
    for i in range(7):
        path = tmp_path / f"{i}.png"
        path.write_bytes(tiny.png(i, tiny.COLOURS[NAMES[i]]) if i != 2 else b"no picture")
        paths.append(str(path))
    paths.insert(4, str(tmp_path / "gone.png"))
    templates = ["a {} square", "{}"]
    good = [x for x in paths if x not in (paths[2], paths[4])]
    want = model.classify(good, NAMES, templates)
    small = dataclasses.replace(model, batch_size=3)
    got = list(classify_files(small, paths, NAMES, templates))
    assert [i for i, x in enumerate(got) if isinstance(x, UserError)] == [2, 4]
    assert "2.png: cannot be read" in str(got[2]) and "gone.png" in str(got[4])
    rows = np.stack([x for x in got if not isinstance(x, UserError)])
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, want, rtol=1e-4, atol=1e-6)


def test_nothing_can_be_read(model, tmp_path):
    got = list(classify_files(model, [str(tmp_path / "gone.png")], NAMES, ["{}"]))
    assert len(got) == 1 and isinstance(got[0], UserError)
