import math
import re
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest

from clip_jax.report.plots import MAX_POINTS, line_chart


def _texts(svg):
    return [e.text for e in ET.fromstring(svg).iter("text")]


def _lines(svg):
    """The points of each coloured line, in the units of the drawing."""
    found = re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--chart-\d', svg)
    return [
        np.array([[float(v) for v in p.split()] for p in re.findall(r"[ML] ([-\d. ]+)", d)])
        for d in found
        if "C" not in d
    ]


def test_line_has_the_shape_of_its_numbers():
    x, y = [0, 100, 200, 400], [5.0, 3.0, 4.0, 1.0]
    (line,) = _lines(line_chart("t", "step", "loss", {"loss": (x, y)}))
    # The drawing is an affine image of the numbers; downwards is positive.
    for got, want in ((line[:, 0], x), (line[:, 1], y)):
        slope, offset = np.polyfit(want, got, 1)
        np.testing.assert_allclose(slope * np.array(want) + offset, got, atol=1e-4)
    assert line[0, 1] < line[3, 1] and line[0, 0] < line[3, 0]


def test_texts_are_texts_and_names_show_for_two_lines_only():
    svg = line_chart("A title", "step", "loss, nats", {"one": ([1, 2], [1, 2])})
    assert {"A title", "step", "loss, nats"} <= set(_texts(svg))
    assert "one" not in _texts(svg)
    svg = line_chart("t", "x", "y", {"one": ([1, 2], [1, 2]), "_two": ([1, 2], [2, 1])})
    assert {"one", "_two"} <= set(_texts(svg))


def test_a_long_name_leaves_the_lines_their_room():
    trials = [f"{i:08x} model.image.width=16, mlp_dim=64, heads=1, num_steps=12" for i in (1, 2)]
    widths = []
    for names in (trials, ["one", "two"]):
        svg = line_chart("t", "x", "y", {n: ([1, 2], [1, i]) for i, n in enumerate(names)})
        widths.append(min(np.ptp(line[:, 0]) for line in _lines(svg)[:2]))
        if names is trials:
            assert {"00000001 model.image.width=16…", "00000002 model.image.width=16…"} <= set(
                _texts(svg)
            )
    assert widths[0] == pytest.approx(widths[1], rel=0.01)


def test_same_numbers_same_text_and_no_trace_in_global_settings():
    before = dict(matplotlib.rcParams)
    draw = lambda: line_chart("t", "x", "y", {"a": ([1, 2, 3], [3, 1, 2])})  # noqa: E731
    assert draw() == draw()
    assert dict(matplotlib.rcParams) == before


def test_ids_of_two_charts_differ():
    ids = [
        set(re.findall(r' id="([^"]*)"', line_chart(t, "x", "y", {"a": ([1, 2], [1, 2])})))
        for t in ("one", "two")
    ]
    assert ids[0] and not ids[0] & ids[1]


def test_inert_and_self_contained_whatever_the_texts():
    bad = '</svg><script>alert(1)</script> $\\frac{$ "onload=x" \x1b[2J \u202e id="q" #57534e &'
    svg = line_chart(bad, bad, bad, {bad: ([1, 2], [1, 2]), "b": ([1, 2], [2, 1])})
    root = ET.fromstring(svg)
    allowed = {"svg", "g", "path", "text", "use", "defs", "clipPath", "rect"}
    assert {e.tag for e in root.iter()} <= allowed
    shown = bad.replace("\x1b", "").replace("\u202e", "")
    names = [shown, shown, shown, f"{shown[:29]}…"]  # title, axes, line
    assert sorted(t for t in _texts(svg) if "script" in t) == sorted(names)
    assert root.get("aria-label") == shown
    assert "http" not in svg and "<!" not in svg and "<?" not in svg
    for e in root.iter():
        assert e.get("href", "#").startswith("#")
        assert not [a for a in e.keys() if a.startswith("on")]


def test_colours_are_variables():
    svg = line_chart("t", "x", "y", {"a": ([1, 2], [1, 2]), "b": ([1, 2], [2, 1])})
    assert not re.search(r": #", svg)
    assert {"--chart-ink", "--chart-grid", "--chart-1", "--chart-2"} == set(
        re.findall(r"var\((--[\w-]+)", svg)
    )


def test_gap_where_a_value_is_not_finite():
    y = [1.0] * 30 + [math.nan, math.inf] + [2.0] * 30
    svg = line_chart("t", "x", "y", {"a": (list(range(62)), y)})
    (path,) = re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--chart-1', svg)
    assert path.count("M") == 2


def test_a_long_line_is_thinned_and_keeps_its_spike():
    y = np.random.default_rng(0).normal(size=50_000)
    y[31_234] = 50.0
    (line,) = _lines(line_chart("t", "x", "y", {"a": (list(range(50_000)), y.tolist())}))
    assert 100 < len(line) <= MAX_POINTS
    (spike,) = np.flatnonzero(line[:, 1] < line[:, 1].min() + 1e-6)
    share = (line[spike, 0] - line[0, 0]) / (line[-1, 0] - line[0, 0])
    assert share == pytest.approx(31_234 / 49_999, abs=1e-3)


@pytest.mark.parametrize("y", [[], [math.nan] * 3, [0.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [1e-9] * 3])
@pytest.mark.parametrize("log_y", [False, True])
def test_odd_data_draws(y, log_y):
    ET.fromstring(line_chart("t", "x", "y", {"a": (list(range(len(y))), y)}, log_y=log_y))


def test_logarithmic_axis():
    x, y = [1, 2, 3, 4], [1.0, 10.0, 100.0, 1000.0]
    svg = line_chart("t", "x", "y", {"a": (x, y)}, log_y=True)
    (line,) = _lines(svg)
    np.testing.assert_allclose(np.diff(line[:, 1]), np.diff(line[:, 1])[0], atol=1e-4)
    assert {"1", "10", "100", "1,000"} <= set(_texts(svg))


def test_zero_is_on_the_axis_when_asked_for():
    assert "0" in _texts(line_chart("t", "x", "y", {"a": ([10, 20], [90.0, 99.0])}, zero_y=True))
