"""The trials of a sweep: a recipe's `sweep(add)`, resolved to configs.

    def sweep(add):
        for rate in (3e-4, 1e-3):
            for seed in range(3):
                add({"optim.learning_rate": rate, "seed": seed})

A trial is named by a hash of its config, so it keeps its name when others are added.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clip_jax.config.codec import to_dict
from clip_jax.config.load import load, read_sweep
from clip_jax.config.schema import Config
from clip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run.

    Attributes:
        name: eight digits of the hash.
        changes: {field: value}, as the recipe added them.
        flags: of `clip_jax train`, without --workdir.
        cfg: resolved.
    """

    name: str
    changes: dict[str, Any]
    flags: tuple[str, ...]
    cfg: Config

    @property
    def label(self) -> str:
        """The changes in short: learning_rate=0.001, seed=1."""
        return ", ".join(f"{k.rpartition('.')[2]}={v}" for k, v in self.changes.items())


def expand(
    recipe: str, overrides: tuple[str, ...] = (), pairs: Callable[[Config], int] | None = None
) -> list[Trial]:
    """All trials, in the recipe's order; the overrides hold for each. `pairs` as in config.load.

    Raises:
        UserError: no sweep in the recipe, an unknown field, or a field that the sweep sets too.
    """
    added: list[dict[str, Any]] = []

    def add(*groups: dict[str, Any], **fields: Any) -> None:
        added.append({k: plain(v) for group in (*groups, fields) for k, v in group.items()})

    read_sweep(recipe)(add)
    if not added:
        raise UserError(f"{recipe}: its sweep(add) adds no trial; call add at least once")
    found: dict[str, Trial] = {}
    for changes in added:
        fields = tuple(option(k, v) for k, v in changes.items())
        try:
            cfg = load(recipe, (*overrides, *fields), pairs=pairs)
        except UserError as e:
            raise UserError(f"trial {' '.join(fields) or 'without changes'}: {e}") from e
        text = json.dumps(to_dict(cfg), sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:8]
        flags = (f"--config={recipe}", *overrides, *fields)
        found.setdefault(name, Trial(name, changes, flags, cfg))
    return list(found.values())


def plain(value: Any) -> Any:
    """Python's own number for one of numpy's, whose repr the command line would not read."""
    if isinstance(value, tuple | list):
        return type(value)(plain(x) for x in value)
    return value.item() if isinstance(value, np.generic) else value


def option(path: str, value: Any) -> str:
    """--config.PATH=VALUE, as `clip_jax train` reads it."""
    return f"--config.{path}={value if isinstance(value, str) else repr(value)}"


def varied(trials: Sequence[Trial]) -> list[str]:
    """The fields that some trial sets, in the order of their first mention."""
    return list(dict.fromkeys(k for t in trials for k in t.changes))
