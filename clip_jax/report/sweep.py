"""The page of a sweep: workdir/results.html, one file that needs neither network nor script."""

import dataclasses
from typing import Any

from markupsafe import Markup

from clip_jax import files
from clip_jax.report.html import render
from clip_jax.report.plots import Series, line_chart

MOST = 12  # lines of a chart that can be told apart


@dataclasses.dataclass(frozen=True)
class Curve:
    """A trial's name and the lines of its metrics.jsonl."""

    name: str
    metrics: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class SweepReport:
    """What the page shows.

    Attributes:
        title: of the sweep.
        fields: that the trials vary.
        metrics: shown in the table.
        rows: of the table, best first: trial, state, values of metrics, values of fields.
        sorted_by: the metric, with '-' for the largest first.
        curves: of the trials, best first.
    """

    title: str
    fields: list[str]
    metrics: list[str]
    rows: list[list[str]]
    sorted_by: str
    curves: list[Curve]


def _series(curve: Curve, key: str, factor: float) -> Series:
    points = [(line["step"], line[key] * factor) for line in curve.metrics if key in line]
    return [x for x, _ in points], [y for _, y in points]


def _charts(report: SweepReport) -> list[Markup]:
    shown, out = report.curves[:MOST], []
    for key in report.metrics[1:]:
        share = key.startswith("eval/")
        lines = {c.name: _series(c, key, 100 if share else 1) for c in shown}
        lines = {name: xy for name, xy in lines.items() if xy[0]}
        if lines:
            unit = "% right" if share else key
            chart = line_chart(key.removeprefix("eval/"), "step", unit, lines, zero_y=share)
            out.append(Markup(chart))  # escaped by line_chart
    return out


def write_sweep(workdir: str, report: SweepReport) -> str:
    """Writes workdir/results.html whole, and gives its path."""
    values = {"report": report, "charts": _charts(report), "most": MOST}
    path = files.join(workdir, "results.html")
    files.write_bytes(path, render("sweep.html.j2", values, {}).encode())
    return path
