"""What trials came to: order, table, CSV, page."""

import csv
import json
import re

import pytest

import tiny
from clip_jax.errors import UserError
from clip_jax.report.finished import MARK
from clip_jax.sweep import results
from clip_jax.sweep.trials import Trial

pytestmark = pytest.mark.core
TRIALS = [
    Trial(name, changes, (), tiny.config("x"))
    for name, changes in {
        "aaaa": {"optim.learning_rate": 0.1, "name": "<b>bold</b>"},
        "bbbb": {"optim.learning_rate": 0.2},
        "cccc": {"optim.learning_rate": 0.3},
    }.items()
]


@pytest.fixture
def workdir(tmp_path):
    for name, loss, top1 in (("aaaa", 2.5, 0.25), ("bbbb", 1.5, 0.5)):
        folder = tmp_path / name
        folder.mkdir()
        lines = [{"step": s, "attempt": 1, "loss": loss + 2 - s} for s in (1, 2)]
        lines.append({"step": 2, "attempt": 1, "eval/zeroshot/top1": top1})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (tmp_path / "aaaa" / "report.html").write_text('<meta name="run" content="running">')
    (tmp_path / "bbbb" / "report.html").write_bytes(MARK)
    return str(tmp_path)


def names(rows):
    return [r.trial.name for r in rows]


def test_order(workdir):
    found = results.rows(TRIALS, workdir, {})
    assert [r.state for r in found] == ["not finished", "finished", "waiting"]
    again = results.rows(TRIALS, workdir, {"aaaa": 4, "bbbb": 0, "cccc": 2})
    assert [r.state for r in again] == ["failed (4)", "finished", "failed (2)"]
    assert results.default_sort(found) == "-eval/zeroshot/top1"
    assert names(results.ordered(found, "-eval/zeroshot/top1")) == ["bbbb", "aaaa", "cccc"]
    assert names(results.ordered(found, "-loss")) == ["aaaa", "bbbb", "cccc"]
    with pytest.raises(UserError, match="--sort: no metric 'lost'; did you mean 'loss'"):
        results.ordered(found, "lost")
    assert results.default_sort(results.rows(TRIALS[2:], workdir, {})) == "loss"


def test_lines_are_named_by_what_tells_trials_apart(workdir):
    changes = [
        {"num_steps": n, "optim.warmup_steps": n // 10, "seed": 3, "model.image.width": w}
        for n in (10, 20)
        for w in (32, 64)
    ]
    trials = [Trial(f"{i:08}", c, (), tiny.config("x")) for i, c in enumerate(changes)]
    assert results._names(results.rows(trials, workdir, {})) == [
        "00000000 num_steps=10 width=32",
        "00000001 num_steps=10 width=64",
        "00000002 num_steps=20 width=32",
        "00000003 num_steps=20 width=64",
    ]
    assert results._names(results.rows(trials[:1], workdir, {})) == ["00000000"]


def test_table(workdir):
    lines = results.text(results.ordered(results.rows(TRIALS, workdir, {}), "loss")).splitlines()
    assert lines[0].split() == [
        "trial", "optim.learning_rate", "name", "step", "loss", "zeroshot/top1", "state"
    ]  # fmt: skip
    assert lines[1].split() == ["bbbb", "0.2", "tiny", "2", "1.5", "50.0", "%", "finished"]
    assert lines[3].split() == ["cccc", "0.3", "tiny", "waiting"]


def test_files(workdir):
    found = results.ordered(results.rows(TRIALS, workdir, {}), "loss")
    table, page = results.write(found, workdir, "A <sweep>", "loss")
    lines = list(csv.DictReader(open(table, newline="")))
    assert lines[0]["eval/zeroshot/top1"] == "0.5" and lines[0]["optim.learning_rate"] == "0.2"
    assert lines[1]["name"] == "<b>bold</b>" and lines[2]["loss"] == ""
    html = open(page).read()
    assert "A &lt;sweep&gt;" in html and "<b>bold" not in html
    assert html.count("<svg") == 2 and "sorted by loss, smallest first" in html
    assert html.index("bbbb") < html.index("aaaa")
    cells = re.findall(
        r"<t[hd] scope=\"col\"([^>]*)>(?:<bdi>)?([^<]*)|<td([^>]*)><bdi>([^<]*)", html
    )
    assert [(a + c, b + d) for a, b, c, d in cells][:14] == [
        ("", "Trial"),
        ("", "State"),
        (' class="number"', "step"),
        (' class="number"', "loss"),
        (' class="number"', "eval/zeroshot/top1"),
        ("", "optim.learning_rate"),
        ("", "name"),
        ("", "finished"),
        (' class="number"', "2"),
        (' class="number"', "1.5"),
        (' class="number"', "50.0 %"),
        ("", "0.2"),
        ("", "tiny"),
        ("", "not finished"),
    ]
