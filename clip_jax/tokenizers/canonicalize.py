"""Text repair and SigLIP's canonical form.

Costs: `repair` takes about 25 us a caption (nearly all of it ftfy), `canonicalize` 2 us.
"""

import html
import string

import ftfy

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def repair(text: str) -> str:
    """Mends broken encodings and HTML entities, as OpenAI's CLIP does before anything else.

    Entities are undone twice because web captions often hold them escaped twice (`&amp;lt;`).
    """
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def canonicalize(text: str) -> str:
    """Lower case without ASCII punctuation, single spaces; `_` counts as a space.

    The rule of big_vision's evaluators/proj/image_text/prompt_engineering.py. Hugging Face's
    SigLIP tokenizer deletes `_` instead: `a_b` is `ab` there and `a b` here.
    """
    return " ".join(text.replace("_", " ").translate(_NO_PUNCTUATION).lower().split())


def clean(text: str) -> str:
    """What OpenCLIP feeds to SigLIP's SentencePiece model: repaired, then canonical."""
    return canonicalize(repair(text))
