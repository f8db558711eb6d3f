"""Lengths in steps, examples or epochs: 5_000, '2Bex', '12.8Mex', '32ep'; inside, all are steps."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

from clip_jax.config.schema import Config
from clip_jax.errors import UserError

_FORM = re.compile(r"(\d[\d_]*(?:\.\d+)?(?:e\d+)?)\s?([kMB]?)(ex|ep)?")
_TIMES = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9}
FORMS = "steps (5_000), examples ('2Bex') or epochs ('32ep')"


def parse(text: str, where: str) -> tuple[float, str]:
    """(number, '' for steps, 'ex' or 'ep').

    Raises:
        UserError: it is no length.
    """
    found = _FORM.fullmatch(text.strip())
    number = float(found[1].replace("_", "")) * _TIMES[found[2]] if found else math.nan
    unit = (found[3] or "") if found else ""
    if not math.isfinite(number) or (not unit and number % 1):
        raise UserError(f"{where}: must be {FORMS} (got {text!r})")
    return number, unit


def settled(cfg: Config, pairs: Callable[[Config], int] | None = None) -> Config:
    """`cfg` with every length in steps, to the nearest, and at least 1 for more than nothing.

    Args:
        cfg: from a recipe.
        pairs: counts the training pairs; asked only if some length is in epochs and
            config.data.epoch_size is 0.

    Raises:
        UserError: a length is none, or in epochs of unknown size.
    """
    known: list[int] = []

    def epoch(where: str) -> int:
        if not known:
            size = cfg.data.epoch_size or (pairs(cfg) if pairs else 0)
            if not size:
                raise UserError(
                    f"{where}: is in epochs, and no data are read; set config.data.epoch_size"
                )
            known.append(size)
        return known[0]

    def steps(text: str, where: str) -> int:
        number, unit = parse(text, where)
        if unit:
            examples = number * epoch(where) if unit == "ep" else number
            number = max(1, round(examples / max(1, cfg.batch_size))) if examples else 0
        return int(number)

    def walk(part: Any, where: str) -> Any:
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(part):
            value, path = getattr(part, field.name), f"{where}.{field.name}"
            if dataclasses.is_dataclass(value):
                changes[field.name] = walk(value, path)
            elif field.metadata.get("length") and isinstance(value, str):
                changes[field.name] = steps(value, path)
        return dataclasses.replace(part, **changes)

    return walk(cfg, "config")
