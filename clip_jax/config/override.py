"""`--config.FIELD=VALUE` on a ConfigDict, by ml_collections; what it lets pass is refused."""

import dataclasses
import re
import typing
from typing import Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from clip_jax.config.schema import Config
from clip_jax.errors import UserError, near


def check_overrides(overrides: tuple[str, ...]) -> None:
    """Names each unknown field, and each scalar given twice (the library keeps the last)."""
    seen: set[str] = set()
    for item in overrides:
        flag, equals, _ = item.partition("=")
        path = flag.lstrip("-").removeprefix("no") if not equals else flag.lstrip("-")
        is_tuple = typing.get_origin(type_of(path)) is tuple
        if path in seen and not is_tuple:
            raise UserError(f"--{path}: given twice; keep one")
        seen.add(path)


def type_of(path: str) -> Any:
    """Type of `config.a.b[0].c`. Raises UserError for a field that does not exist."""
    kind: Any = Config
    done = "config"
    for name in path.split(".")[1:]:
        bare = re.sub(r"\[\d+\]$", "", name)
        if not dataclasses.is_dataclass(kind):
            raise UserError(f"{done}: has no fields (got '{path}')")
        types = typing.get_type_hints(kind)
        if bare not in types:
            raise UserError(f"{done}.{bare}: no such field{near(bare, types)}")
        kind, done = types[bare], f"{done}.{name}"
        if bare != name:
            if typing.get_origin(kind) is not tuple:
                raise UserError(f"{done}: is not a tuple; leave the [..] out")
            kind = typing.get_args(kind)[0]
    return kind


def _quoted(item: str) -> str:
    """Puts a bare string for a tuple of strings, or for a length, in quotes."""
    flag, equals, value = item.partition("=")
    bare = equals and not value.startswith(("(", "[", "'", '"'))
    path = flag.lstrip("-")
    if not bare or (type_of(path) != tuple[str, ...] and not is_length(path)):
        return item
    return f"{flag}={value!r}"


def is_length(path: str) -> bool:
    """Whether a field may be given in steps, examples or epochs."""
    parent, _, name = path.rpartition(".")
    fields = {f.name: f for f in dataclasses.fields(type_of(parent))}
    return name in fields and bool(fields[name].metadata.get("length"))


def overridden(config: Any, overrides: tuple[str, ...]) -> Any:
    """A ConfigDict with command-line arguments applied.

    Raises:
        UserError: an unknown field, or a value of another type.
    """
    values = flags.FlagValues()
    argv = ["clip_jax", *(_quoted(x) for x in overrides)]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
        return values["config"].value
    except (flags.Error, ValueError, TypeError, IndexError) as e:
        _check_entries(config, overrides)
        text = " ".join(str(e).split())
        where = "" if "--config." in text else f"{', '.join(overrides)}: "
        raise UserError(
            f"{where}{text}; see `clip_jax train --help` for the type of the field"
        ) from e


def _check_entries(config: Any, overrides: tuple[str, ...]) -> None:
    """Names the override of an entry that is not there, such as config.init[0] of none."""
    for item in overrides:
        path = item.partition("=")[0].lstrip("-").removeprefix("config.")
        try:
            config_path.get_value(path, config)
        except IndexError as e:
            raise UserError(
                f"--config.{path}: there is no entry of that number; leave it out, or give the "
                "recipe one"
            ) from e
