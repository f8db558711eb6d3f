"""Text that others wrote (captions, class and file names) on its way into a page."""

import re

# Controls but tab and newline, halves of surrogate pairs, and marks that reorder what follows.
_UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """Strips what no reader sees but a terminal or browser obeys. Escaping is left to do."""
    return _UNWANTED.sub("", text)


def one_line(text: str) -> str:
    """The same on one line, for a terminal: runs of white space become a space."""
    return " ".join(clean(text).split())
