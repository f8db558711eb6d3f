"""The contact sheet: hostile text stays text, a picture that is gone leaves a box."""

import base64
import uuid

import pytest
from inert import HOSTILE, Page, assert_inert

from clip_jax import files
from clip_jax.report.sheet import Picture, Sheet, write_sheet
from clip_jax.report.text import clean, one_line


def write(path, sheet):
    write_sheet(str(path), sheet)
    text = files.read_bytes(str(path)).decode()
    page = Page(text)
    assert_inert(text, page)
    return page


@pytest.mark.parametrize("bad", HOSTILE)
def test_hostile_text_stays_text(tmp_path, bad):
    pictures = [Picture(b"J", 256, bad, bad, 0.5), Picture(b"", 0, bad, "", -0.25)]
    query = Picture(b"Q", 16, bad, "", 1.0)
    for text in (bad, ""):
        sheet = Sheet(text, query, pictures, 12_345, [("command", bad), (bad, bad)])
        page = write(tmp_path / "page.html", sheet)
        shown = clean(bad)
        assert page.all("title")[0]["text"] == f"{shown} – clip_jax"
        assert page.all("h1")[0]["text"] == shown
        assert [x["text"] for x in page.all("p", "caption")] == [shown]
        assert [x["text"] for x in page.all("p", "path")] == [shown, shown]
        assert shown in page.all("div", "gone")[0]["text"]
        assert page.all("code")[0]["text"] == shown
        images = page.all("img")
        assert [x["class"] for x in images] == ["photo"] if text else ["small", "photo"]
        assert base64.b64decode(images[-1]["src"].partition(",")[2]) == b"J"
        assert images[-1]["alt"] == shown
        assert "2 of 12,345 pictures" in page.all("div", "lead")[0]["text"]
        assert [float(x["value"]) for x in page.all("data")] == [0.5, -0.25]


def test_remote_page():
    path = f"memory://{uuid.uuid4().hex}/page.html"
    write(path, Sheet("x", Picture(b"", 0, "", "", 1.0), [], 1, []))


def test_one_line():
    assert one_line(" a\n\tb\x1b[0m \u202ec ") == "a b[0m c"
