"""What the trials of a sweep came to: a table for the terminal, a CSV file, a page with curves."""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax import files
from clip_jax.config.codec import flatten
from clip_jax.errors import DONE, UserError, near
from clip_jax.metrics.writers import read_metrics
from clip_jax.report.sweep import Curve, SweepReport, write_sweep
from clip_jax.sweep.run import finished
from clip_jax.sweep.trials import Trial, varied


@dataclasses.dataclass(frozen=True)
class Row:
    """A trial and the last value of each of its metrics."""

    trial: Trial
    state: str
    metrics: list[dict[str, Any]]
    last: dict[str, Any]


def rows(trials: Sequence[Trial], workdir: str, statuses: Mapping[str, int]) -> list[Row]:
    """In the order of the trials; `statuses` are those with which trials ended just now."""
    out = []
    for trial in trials:
        lines = read_metrics(files.join(workdir, trial.name))
        last: dict[str, Any] = {}
        for line in lines:
            last |= line
        state = "finished" if finished(trial, workdir) else "not finished" if lines else "waiting"
        if status := statuses.get(trial.name, DONE):
            state = f"failed ({status})"
        out.append(Row(trial, state, lines, last))
    return out


def ordered(found: Sequence[Row], by: str) -> list[Row]:
    """Sorted by a metric, '-' before its name for the largest first; rows without it at the end.

    Raises:
        UserError: no row has such a metric.
    """
    name = by.removeprefix("-")
    known = sorted({k for row in found for k in row.last})
    if known and name not in known:
        raise UserError(f"--sort: no metric '{name}'{near(name, known)}; known: {', '.join(known)}")
    sign = -1 if by.startswith("-") else 1

    def key(row: Row) -> tuple[bool, float]:
        value = float(row.last.get(name, math.nan))
        return (False, sign * value) if math.isfinite(value) else (True, 0.0)

    return sorted(found, key=key)


def scores(found: Sequence[Row]) -> list[str]:
    """The top-1 scores that the trials have."""
    names = {k for r in found for k in r.last}
    return sorted(k for k in names if k.startswith("eval/") and k.endswith("/top1"))


def default_sort(found: Sequence[Row]) -> str:
    """The first score, best first; without one the loss."""
    return f"-{scores(found)[0]}" if scores(found) else "loss"


def text(found: Sequence[Row]) -> str:
    """The table for the terminal: what was varied, the step, loss and scores."""
    fields, metrics = varied([r.trial for r in found]), ["step", "loss", *scores(found)]
    head = ["trial", *fields, *(m.removeprefix("eval/") for m in metrics), "state"]
    body = [
        [r.trial.name, *_changes(r, fields), *(_number(r.last.get(m), m) for m in metrics), r.state]
        for r in found
    ]
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    return "\n".join(
        "  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)).rstrip()
        for line in (head, *body)
    )


def write(found: Sequence[Row], workdir: str, title: str, by: str) -> tuple[str, str]:
    """Writes results.csv, with every metric, and results.html; gives their paths."""
    fields = varied([r.trial for r in found])
    metrics = sorted({k for r in found for k in r.last} - {"time", "attempt"})
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["trial", "state", *fields, *metrics])
    for r in found:
        table.writerow(
            [r.trial.name, r.state, *_changes(r, fields), *(r.last.get(m, "") for m in metrics)]
        )
    where = files.join(workdir, "results.csv")
    files.write_bytes(where, out.getvalue().encode())
    shown = ["step", "loss", *scores(found)]

    def cells(r: Row) -> list[str]:
        values = (_number(r.last.get(m), m) for m in shown)
        return [r.trial.name, r.state, *values, *_changes(r, fields)]

    report = SweepReport(
        title=title,
        fields=fields,
        metrics=shown,
        rows=[cells(r) for r in found],
        sorted_by=by,
        curves=[
            Curve(name, r.metrics)
            for name, r in zip(_names(found), found, strict=True)
            if r.metrics
        ],
    )
    return where, write_sweep(workdir, report)


def _names(found: Sequence[Row]) -> list[str]:
    """Of lines: the trial, and the first fields whose values together tell the trials apart."""
    fields: list[str] = []
    told = 1
    for field in varied([r.trial for r in found]):
        wider = len({tuple(_changes(r, [*fields, field])) for r in found})
        if wider > told:
            fields, told = [*fields, field], wider
    short = [f.rpartition(".")[2] for f in fields]
    return [
        " ".join([r.trial.name, *map("=".join, zip(short, _changes(r, fields), strict=True))])
        for r in found
    ]


def _changes(row: Row, fields: Sequence[str]) -> list[str]:
    """Also of fields that only other trials set."""
    values = {**flatten(row.trial.cfg), **row.trial.changes}
    return [str(values.get(f, "")) for f in fields]


def _number(value: Any, metric: str) -> str:
    if value is None:
        return ""
    if metric.startswith("eval/"):
        return f"{100 * value:.1f} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
