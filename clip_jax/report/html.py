"""From a template to a page: everything is escaped, control characters go.

Captions, class and file names are the text of strangers; each page's own policy (CSP) also forbids
scripts and whatever is not inside the file.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from clip_jax.report.text import clean

_TEMPLATES = os.path.join(os.path.dirname(__file__), "templates")
SMALL_PX = 96  # images narrower than this are shown with sharp pixels


def _finalize(value: Any) -> Any:
    """Every value on its way into the page; markup is ours and clean already."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def render(
    template: str, values: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]]
) -> str:
    """The page of a file in templates/, with these values and filters."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(template).render(values)
