"""Weights between two models, in Python and by the command."""

import dataclasses

import command
import jax
import numpy as np
import pytest

import clip_jax
import tiny
from clip_jax.config.schema import InitConfig
from clip_jax.errors import UserError
from clip_jax.interop.table import leaves
from clip_jax.models import posemb


@pytest.fixture(scope="module")
def pair():
    """The same model twice, with other random parameters."""
    start = clip_jax.load(config=tiny.model(), init="random")
    other = jax.tree.map(lambda x: 3 * x + 1, start.params)
    return start, dataclasses.replace(start, params=other)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_each_parameter_by_itself(pair, share):
    start, end = pair
    found = leaves(clip_jax.interpolate(start, end, share).params)
    a, b = leaves(start.params), leaves(end.params)
    assert found.keys() == b.keys()
    for name, x in found.items():
        want = (1 - share) * np.float64(a[name]) + share * np.float64(b[name])
        np.testing.assert_allclose(x, want, rtol=1e-6, atol=1e-6, err_msg=name)


def test_positions_of_another_size(pair):
    end = pair[1]
    cfg = dataclasses.replace(tiny.model(), image=dataclasses.replace(tiny.model().image, size=24))
    start = clip_jax.load(config=cfg, init="random")
    found = clip_jax.interpolate(start, end, 0.5).params["image"]["posemb"]
    old = posemb.resize_grid(start.params["image"]["posemb"], (3, 3), (2, 2))
    want = 0.5 * old + 0.5 * end.params["image"]["posemb"]
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_refusals(pair):
    start, end = pair
    with pytest.raises(UserError, match=r"share: must lie in 0..1 \(got 1.5\)"):
        clip_jax.interpolate(start, end, 1.5)
    wide = dataclasses.replace(tiny.model(), embed_dim=8)
    with pytest.raises(UserError, match=r"image/head/kernel is \(16, 8\) there and"):
        clip_jax.interpolate(clip_jax.load(config=wide, init="random"), end, 0.5)
    text = dataclasses.replace(tiny.model().text, projection="none")
    other = dataclasses.replace(tiny.model(), text=text)
    with pytest.raises(UserError, match="text/head/kernel is in one of them only"):
        clip_jax.interpolate(clip_jax.load(config=other, init="random"), end, 0.5)


@pytest.mark.slow
def test_a_fine_tuned_run_and_its_start(tmp_path):
    """Train, fine-tune from it, export what lies between, score that."""
    folder = tiny.write_folder(tmp_path / "pairs")
    first, second, between = (str(tmp_path / x) for x in ("first", "second", "between"))
    clip_jax.pretrain(tiny.config(folder), first)
    init = (InitConfig(weights=first),)
    clip_jax.pretrain(tiny.config(folder, init=init, seed=1), second)
    status, _, err = command.run(
        "export", second, f"--start={first}", "--share=0.25", "--to=clip_jax", f"--out={between}"
    )
    assert status == 0, err
    a, b, c = (leaves(clip_jax.load(x).params) for x in (first, second, between))
    for name, x in c.items():
        np.testing.assert_allclose(
            x, 0.75 * np.float64(a[name]) + 0.25 * np.float64(b[name]), rtol=1e-5, atol=1e-6
        )
    status, out, err = command.run("eval", between)
    assert status == 0 and "colours" in out, err
    status, _, err = command.run(
        "export", second, "--share=0.25", "--to=clip_jax", f"--out={between}2"
    )
    assert status == 2 and "--share: needs --start" in err
