"""Pages that must stay inert: a parser that fails on unclosed tags, hostile text, the checks."""

import html.parser
import re

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=https://evil.example/x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "{{ 7 * 7 }} {% raw %}",
    "</style></title></pre><svg/onload=alert(1)>",
    "a\x00b\x1b[31mc\u202ed\ud800e",
)
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(html.parser.HTMLParser):
    """All tags with their attributes and text; fails on a tag that is not closed in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        node = {"tag": tag, "text": "", **dict(attrs)}
        self.tags.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag, attrs):
        self.tags.append({"tag": tag, "text": "", **dict(attrs)})

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for node in self.open:
            node["text"] += data

    def all(self, tag, cls=None):
        return [
            t
            for t in self.tags
            if t["tag"] == tag and (cls is None or cls in t.get("class", "").split())
        ]


def assert_inert(text, page):
    policy = [t for t in page.all("meta") if t.get("http-equiv") == "Content-Security-Policy"]
    assert [t["content"].split("; ")[:3] for t in policy] == [
        ["default-src 'none'", "style-src 'unsafe-inline'", "img-src data:"]
    ]
    for node in page.tags:
        assert node["tag"] not in (
            "script",
            "iframe",
            "object",
            "embed",
            "link",
            "base",
            "form",
            "a",
        )
        for name, value in node.items():
            assert not name.startswith("on"), node
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                assert re.match(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+$|#[\w-]+$", value), (
                    value
                )
            if name == "style" or node["tag"] == "style":
                assert not re.search(r"url\((?!#)|@import|expression|javascript", value or "")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
