"""The embedding benchmark runs what it compares; no test looks at rates."""

import re

import pytest

from clip_jax.bench import embed as bench

ARGS = ["--model=ViT-S-32-alt", "--images=3", "--rounds=1"]


@pytest.mark.slow
def test_it_measures_ours_and_what_limits_it(capsys):
    assert bench.main(ARGS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3 JPEGs of 640 x 480 pixels, ViT-S-32-alt")
    names = {re.split(r"  +", line)[0] for line in lines if "images/s" in line}
    assert names >= {"ours", "ours, tower alone", "ours, decoding alone"}


@pytest.mark.parity
def test_the_peer_gives_the_same_embeddings(capsys):
    """Same files, same weights: OpenCLIP's transform and tower."""
    pytest.importorskip("torch")
    assert bench.main(ARGS) == 0
    apart = re.search(r"differ by at most (\S+)", capsys.readouterr().out)
    assert apart and float(apart[1]) <= 1e-5
