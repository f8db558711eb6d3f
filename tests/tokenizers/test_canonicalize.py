"""SigLIP's canonical form against golden lines."""

import json
import pathlib

import pytest

from clip_jax.tokenizers import canonicalize

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "canonicalize.jsonl"


@pytest.mark.parametrize(
    ("function", "column"),
    [(canonicalize.canonicalize, "canon"), (canonicalize.clean, "clean_canon")],
)
def test_every_golden_line_is_exact(function, column):
    lines = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    assert len(lines) == 340
    assert [function(line["text"]) for line in lines] == [line[column] for line in lines]


def test_the_two_columns_differ_where_entities_are():
    assert canonicalize.canonicalize("Tom &amp; Jerry_2.") == "tom amp jerry 2"
    assert canonicalize.clean("Tom &amp;amp; Jerry_2.") == "tom jerry 2"
