import base64
import io
import json
import math
import re
import uuid

import numpy as np
import pytest
from inert import HOSTILE, Page, assert_inert
from PIL import Image

from clip_jax import files
from clip_jax.report.page import Guess, RunReport, Sample, ScoreRow, write_report


def _png(side=32, seed=0):
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


def _sample(name="b", names=("a", "b", "c", "d", "e"), side=32):
    shares = (0.5, 0.25, 0.125, 0.0625, 0.03125)
    return Sample(_png(side), name, tuple(Guess(n, p) for n, p in zip(names, shares, strict=True)))


METRICS = [{"step": s, "attempt": 1, "time": 0.0, "loss": 9.0 / s} for s in (10, 20, 30)] + [
    {
        "step": 30,
        "loss": math.nan,
        "speed/examples_per_s": 700.0,
        "data/wait_share": 0.01,
        "optim/learning_rate": 1e-3,
        "eval/zeroshot/top1": 0.4,
        "eval/zeroshot/top5": 0.8,
    }
]


def _report(**parts):
    whole = {
        "title": "Glyphs",
        "summary": [("steps", "1,600"), ("command", "python -m clip_jax train")],
        "metrics": [],  # charts take time
        "scores": [
            ScoreRow("zeroshot", "the 166 held-out names", 166, 2047, 0.77512, 0.9913, 1 / 166)
        ],
        "samples": [_sample()],
        "notes": ["Look-alike names exist."],
        "config": {"seed": 3, "model": {"dtype": "float32"}},
    }
    return RunReport(**(whole | parts))


def _write(tmp_path, **parts):
    path = write_report(str(tmp_path), _report(**parts))
    text = files.read_bytes(path).decode()
    return text, Page(text)


def test_plain_page_holds_no_address_at_all(tmp_path):
    text, page = _write(tmp_path, metrics=METRICS)
    assert_inert(text, page)
    assert (
        "http:" not in text
        and "https:" not in text
        and "//" not in re.sub('base64,[^"]*', "", text)
    )


@pytest.mark.parametrize("bad", HOSTILE)
def test_hostile_text_stays_text(tmp_path, bad):
    names = (bad, "b", bad + "2", "d", "e")
    text, page = _write(
        tmp_path,
        title=bad,
        summary=[(bad, bad), ("command", bad)],
        metrics=[{"step": 1, f"eval/{bad}/top1": 0.5, f"eval/{bad}/top5": 0.5, bad: 1.0}],
        scores=[ScoreRow(bad, bad, 2, 3, 0.5, 0.5, 0.5)],
        samples=[_sample(bad, names)],
        notes=[bad],
        config={bad: bad, "tuple": (bad,)},
    )
    assert_inert(text, page)
    shown = re.sub("[\x00\x1b\u202e\ud800]", "", bad)
    assert page.all("h1")[0]["text"] == shown
    assert page.all("h3")[0]["text"] == shown
    assert shown in page.all("ul", "notes")[0]["text"]
    assert page.all("code")[0]["text"] == shown
    assert page.all("img")[0]["alt"] == f"held-out image: {shown}"
    assert len(page.all("img")) == 1


def test_numbers_equal_the_inputs(tmp_path):
    _, page = _write(tmp_path)
    shares = [(float(t["value"]), t["text"]) for t in page.all("data")]
    lead = [(0.77512, "77.5\u202f%"), (1 / 166, "0.6\u202f%")]
    row = [(0.77512, "77.5\u202f%"), (0.9913, "99.1\u202f%"), (1 / 166, "0.6\u202f%")]
    guesses = [(p, f"{p:.1%}".replace("%", "\u202f%")) for p in (0.5, 0.25, 0.125, 0.0625, 0.03125)]
    assert shares == lead + row + guesses
    widths = [t["style"] for t in page.all("span") if "style" in t]
    assert widths == ["width: 50.0%", "width: 25.0%", "width: 12.5%", "width: 6.2%", "width: 3.1%"]
    assert "2,047 images among the 166 held-out names" in page.all("th")[5]["text"]
    assert page.all("td")[0]["text"] == "166"
    (pre,) = page.all("pre")
    assert json.loads(pre["text"]) == {"seed": 3, "model": {"dtype": "float32"}}
    facts = page.all("table", "facts")[0]["text"]
    assert "steps" in facts and "1,600" in facts


@pytest.mark.parametrize("rank", range(5))
def test_right_name_is_marked_and_not_by_colour_alone(tmp_path, rank):
    name = "abcde"[rank]
    _, page = _write(tmp_path, samples=[_sample(name), _sample("none of them")])
    marked = [t["text"] for t in page.all("li", "guess") if "right" in t["class"].split()]
    assert len(marked) == 1 and marked[0].startswith(f"✓ right name: {name}")
    assert sum("✓" in t["text"] for t in page.all("li", "guess")) == 1
    verdicts = [t["text"] for t in page.all("p", "verdict")]
    assert verdicts == [
        "✓ right" if rank == 0 else f"right at guess {rank + 1}",
        "not among the five",
    ]
    assert len(page.all("li", "hit")) == (rank == 0)
    assert f"Of the 2 shown, {int(rank == 0)}" in page.all("section")[1]["text"]


def test_images_travel_bit_for_bit(tmp_path):
    samples = [_sample(side=32), _sample(side=224)]
    _, page = _write(tmp_path, samples=samples)
    images = page.all("img")
    assert [base64.b64decode(i["src"].partition(",")[2]) for i in images] == [
        s.image_png for s in samples
    ]
    assert [i["class"] for i in images] == ["small", "photo"]  # sharp pixels for the small one


def test_charts_of_what_the_run_has(tmp_path):
    _, page = _write(tmp_path, metrics=METRICS)
    titles = ["Training loss", "Scores during the run", "Throughput", "Waiting for input"]
    assert [t["aria-label"] for t in page.all("svg")] == [*titles, "Learning rate"]
    _, page = _write(tmp_path, metrics=[{"step": 1, "loss": 2.0}])
    assert [t["aria-label"] for t in page.all("svg")] == ["Training loss"]


def test_ids_are_unique(tmp_path):
    _, page = _write(tmp_path, metrics=METRICS)
    ids = [t["id"] for t in page.tags if "id" in t]
    assert len(set(ids)) == len(ids)


def test_empty_sections_are_left_out(tmp_path):
    empty = {k: [] for k in ("summary", "metrics", "scores", "samples", "notes")}
    _, page = _write(tmp_path, **empty, config={})
    assert page.all("section") == [] and page.all("h1")[0]["text"] == "Glyphs"


def test_not_a_number_is_a_dash(tmp_path):
    row = ScoreRow("t", "names", 2, 3, math.nan, 0.5, 0.5)
    sample = Sample(_png(), "a", (Guess("a", math.nan),))
    _, page = _write(tmp_path, scores=[row], samples=[sample])
    assert page.all("td", "first")[0]["text"] == "\u2013"
    assert [t["style"] for t in page.all("span") if "style" in t] == ["width: 0%"]


def test_remote_workdir_and_same_page_twice():
    workdir = f"memory://{uuid.uuid4().hex}"
    path = write_report(workdir, _report(metrics=METRICS[2:]))
    assert path == workdir + "/report.html"
    first = files.read_bytes(path)
    write_report(workdir, _report(metrics=METRICS[2:]))
    assert files.read_bytes(path) == first
