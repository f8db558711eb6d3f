"""The page of a run: workdir/report.html, one file that needs neither network nor script.

Costs: about a second, most of it charts; 50 kB and the images.
"""

import base64
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from markupsafe import Markup

from clip_jax import files
from clip_jax.report.html import SMALL_PX, render
from clip_jax.report.plots import Series, line_chart
from clip_jax.report.text import clean


@dataclasses.dataclass(frozen=True)
class ScoreRow:
    """A score of zero-shot classification. All shares are 0..1.

    Attributes:
        task: name of the task.
        among: the candidates, as it follows "among": "the 166 held-out names".
        classes: number of candidates.
        examples: number of images.
        top1: share of the images whose first guess is right.
        top5: share of the images with the right name among the first five.
        chance: top-1 of guessing.
    """

    task: str
    among: str
    classes: int
    examples: int
    top1: float
    top5: float
    chance: float


@dataclasses.dataclass(frozen=True)
class Guess:
    """A name and its probability, 0..1."""

    name: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Sample:
    """A held-out image (PNG file), its name, and the five best guesses, best first."""

    image_png: bytes
    name: str
    guesses: tuple[Guess, ...]


@dataclasses.dataclass(frozen=True)
class RunReport:
    """What the page shows; an empty list leaves its section out.

    Attributes:
        title: name of the run.
        summary: (label, value) facts; the value of "command" is set as code.
        metrics: lines of metrics.jsonl.
        scores: the first one is told in the opening sentence.
        samples: held-out images.
        notes: known limits of the scores and a comparison, printed beside them.
        config: the resolved config.
        finished: False while the run goes on.
        published: (step, top-1 as a share) of a published run, beside the scores.
    """

    title: str
    summary: list[tuple[str, str]]
    metrics: list[dict[str, Any]]
    scores: list[ScoreRow]
    samples: list[Sample]
    notes: list[str]
    config: dict[str, Any]
    finished: bool = True
    published: list[tuple[float, float]] = dataclasses.field(default_factory=list)


def _share(value: float) -> Markup:
    """A share as a percentage that also carries the exact number."""
    text = f"{value:.1%}".replace("%", "\u202f%") if math.isfinite(value) else "\u2013"
    return Markup('<data value="{}">{}</data>').format(value, text)


def _width(value: float) -> str:
    return f"{100 * min(max(value, 0.0), 1.0):.1f}%" if math.isfinite(value) else "0%"


def _png_width(png: bytes) -> int:
    return int.from_bytes(png[16:20], "big")  # the first field of the header chunk


def _image(sample: Sample) -> Markup:
    data = base64.b64encode(sample.image_png).decode()
    kind = "small" if _png_width(sample.image_png) < SMALL_PX else "photo"
    tag = Markup('<img class="{}" src="data:image/png;base64,{}" alt="held-out image: {}">')
    return tag.format(kind, data, clean(sample.name))


def _curve(metrics: Iterable[dict[str, Any]], key: str, factor: float = 1.0) -> Series:
    points = [(line["step"], line[key] * factor) for line in metrics if key in line]
    return [x for x, _ in points], [y for _, y in points]


def _charts(metrics: list[dict[str, Any]], published: list[tuple[float, float]]) -> Iterator[str]:
    """The charts of those metrics that the run has."""
    keys = sorted({key for line in metrics for key in line})
    scores = [k for k in keys if k.startswith("eval/") and k.rpartition("/")[2].startswith("top")]
    rates = [k for k in keys if k.rpartition("/")[2] == "learning_rate"]
    if "loss" in keys:
        yield line_chart("Training loss", "step", "loss", {"loss": _curve(metrics, "loss")})
    if scores:
        curves = {k.removeprefix("eval/"): _curve(metrics, k, 100) for k in scores}
        last = max(line["step"] for line in metrics)
        if points := [(x, 100 * y) for x, y in published if x <= 1.2 * last]:
            curves["published, top1"] = [x for x, _ in points], [y for _, y in points]
        yield line_chart("Scores during the run", "step", "% right", curves, zero_y=True)
    for title, unit, key, factor in (
        ("Throughput", "examples per second", "speed/examples_per_s", 1),
        ("Waiting for input", "% of the time", "data/wait_share", 100),
        *(("Learning rate", "learning rate", key, 1) for key in rates),
    ):
        if key in keys:
            curve = {key: _curve(metrics, key, factor)}
            yield line_chart(title, "step", unit, curve, zero_y=True)


def _right_at_first(samples: Iterable[Sample]) -> int:
    return sum(bool(s.guesses) and s.guesses[0].name == s.name for s in samples)


def write_report(workdir: str, data: RunReport) -> str:
    """Writes workdir/report.html whole.

    Args:
        workdir: folder of the run, local or remote.
        data: what to show.

    Returns:
        Path of the page.
    """
    values = {
        "run": data,
        "charts": [
            Markup(svg) for svg in _charts(data.metrics, data.published)
        ],  # its texts are escaped
        "right_at_first": _right_at_first(data.samples),
        "config": json.dumps(data.config, indent=2, ensure_ascii=False, default=str),
    }
    page = render("run.html.j2", values, {"share": _share, "width": _width, "image": _image})
    path = files.join(workdir, "report.html")
    files.write_bytes(path, page.encode())
    return path
