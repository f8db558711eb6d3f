"""Line charts as SVG that stands inside an HTML page.

The same numbers give the same text. No script, no reference to anything outside, text as text;
colours are CSS variables (`--chart-ink`, `--chart-grid`, `--chart-1` ...) with a default each, so
that a page can turn them for the dark. Costs: about 0.1 s and 5 to 30 kB a chart.
"""

import hashlib
import html
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from clip_jax.report.text import clean

Series = tuple[Sequence[float], Sequence[float]]

# Drawn in these colours, then replaced by the variables; told apart by colour-blind eyes too.
_INK, _GRID = "#57534e", "#e3e0dc"
_LINES = ("#2a6fb0", "#c8641b", "#3d8b5f", "#8a5aa8", "#a88a1c", "#b0455a")
_VARIABLES = {
    _INK: "--chart-ink",
    _GRID: "--chart-grid",
    **{color: f"--chart-{i}" for i, color in enumerate(_LINES, 1)},
}
_DASHES = ("-", "--", ":", "-.")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "clip_jax",
    "text.parse_math": False,  # a name with dollars is a name
    "font.size": 8.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GRID,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _GRID,
}
_STEPS = (1, 2, 2.5, 5, 10)
MAX_POINTS = 600
MAX_NAME = 30  # letters of a line's name: a longer one would push the lines out of the chart


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_POINTS points: the lowest and highest of each stretch, so no spike is lost."""
    if len(x) <= MAX_POINTS:
        return x, y
    keep = {0, len(x) - 1}
    for part in np.array_split(np.arange(len(x)), MAX_POINTS // 2 - 1):
        if np.isfinite(y[part]).any():
            keep |= {int(part[np.nanargmin(y[part])]), int(part[np.nanargmax(y[part])])}
    chosen = sorted(keep)
    return x[chosen], y[chosen]


def _arrays(series: Series) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.asarray(v, np.float64) for v in series)
    return _thin(x, np.where(np.isfinite(y), y, np.nan))  # a gap in the line


def _draw(axes: Axes, series: Mapping[str, Series]) -> None:
    handles = []
    for i, (x, y) in enumerate(_arrays(s) for s in series.values()):
        dash = _DASHES[i % len(_DASHES)]
        marker = "o" if len(x) < 20 else ""
        handles += axes.plot(x, y, dash, color=_LINES[i % len(_LINES)], lw=1.4, marker=marker, ms=3)
    if len(handles) > 1:
        legend = axes.legend(handles, [str(i) for i in range(len(handles))], frameon=False)
        for text, name in zip(legend.get_texts(), series, strict=True):
            # As a label, a name with a leading _ would be left out.
            text.set_text(_shortened(clean(name)))


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1].rstrip(' ,')}…"


def _ticks(axes: Axes, series: Mapping[str, Series], *, log_y: bool, zero_y: bool) -> None:
    number = FuncFormatter(lambda v, _: f"{v:,.6g}")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS, integer=True))
    axes.xaxis.set_major_formatter(number)
    if log_y and any(0 < v < math.inf for _, y in series.values() for v in y):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        if zero_y:
            axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(number)


def _inline_tag(tag: str, prefix: str) -> str:
    """Own ids (a page has many charts), the page's font, variables for colours."""
    if tag.startswith("<g"):
        return re.sub(r' id="[^"]*"', "", tag)
    tag = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{prefix}-", tag)
    tag = tag.replace("xlink:href=", "href=")
    tag = re.sub(r"font-family: [^;\"]*", "font-family: inherit", tag)
    for color, variable in _VARIABLES.items():
        tag = tag.replace(f": {color}", f": var({variable}, {color})")
    return tag


def _inline(svg: str, title: str) -> str:
    """Makes a standalone SVG file part of a page."""
    svg = svg[svg.index("<svg") :]  # no prolog
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.S)  # a rule for *
    prefix = "c" + hashlib.sha256((title + svg).encode()).hexdigest()[:8]
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box, "matplotlib writes a viewBox"
    body = svg[svg.index(">") + 1 :]
    body = re.sub(r"<[^<>]*>", lambda tag: _inline_tag(tag[0], prefix), body)  # never the texts
    body = re.sub(r"\s*<g/>", "", body).strip()
    return f'<svg viewBox="{box[1]}" role="img" aria-label="{html.escape(title)}">\n{body}'


def line_chart(
    title: str,
    xlabel: str,
    ylabel: str,
    series: Mapping[str, Series],
    *,
    log_y: bool = False,
    zero_y: bool = False,
) -> str:
    """One small chart.

    Args:
        title: above the chart.
        xlabel: name of the horizontal axis.
        ylabel: name and unit of the vertical axis.
        series: name -> (x, y), of equal lengths; the names show when there are two or more,
            cut after MAX_NAME letters.
            Values that are not finite leave a gap. Beyond MAX_POINTS points a line is thinned.
        log_y: logarithmic vertical axis, if any value is above zero.
        zero_y: the vertical axis starts at zero (linear only).

    Returns:
        An <svg> element, safe inside HTML whatever the texts are.
    """
    out = io.StringIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser's fonts draw the text, not ours
        figure = Figure(figsize=(5.0, 2.9), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.set_title(clean(title), loc="left", fontweight="bold", fontsize=10)
        axes.set_xlabel(clean(xlabel))
        axes.set_ylabel(clean(ylabel))
        axes.grid(lw=0.6)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        _draw(axes, series)
        _ticks(axes, series, log_y=log_y, zero_y=zero_y)
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.print_svg(out, metadata=nothing)
    return _inline(out.getvalue(), clean(title))
