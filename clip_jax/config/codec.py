"""Config <-> plain data <-> ConfigDict, typed: an unknown field or a wrong type is a UserError."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from clip_jax.config.schema import Config
from clip_jax.errors import UserError, near


def to_dict(cfg: Any) -> dict[str, Any]:
    """A dataclass as plain data (dicts, lists, scalars), ready for JSON."""

    def plain(x: Any) -> Any:
        if dataclasses.is_dataclass(x):
            return {f.name: plain(getattr(x, f.name)) for f in dataclasses.fields(x)}
        return [plain(v) for v in x] if isinstance(x, tuple) else x

    return plain(cfg)


def from_dict(
    data: Mapping[str, Any] | ConfigDict, kind: Any = Config, where: str = "config"
) -> Any:
    """The dataclass `kind` from plain data or a ConfigDict; missing fields keep their defaults.

    Raises:
        UserError: an unknown field (with a suggestion) or a value of the wrong type.
    """
    if not isinstance(data, Mapping | ConfigDict):
        raise UserError(f"{where}: must be a group of fields (got {data!r})")
    types = typing.get_type_hints(kind)
    for name in data:
        if name not in types:
            raise UserError(f"{where}.{name}: no such field{near(name, types)}")
    lengths = {f.name for f in dataclasses.fields(kind) if f.metadata.get("length")}
    return kind(
        **{
            n: _length(data[n], f"{where}.{n}")
            if n in lengths
            else _value(data[n], types[n], f"{where}.{n}")
            for n in types
            if n in data
        }
    )


def _length(x: Any, where: str) -> int | str:
    """Steps, or a text that config/units.py turns into steps."""
    if type(x) not in (int, str):
        raise UserError(f"{where}: must be int, or a text such as '2Bex' or '32ep' (got {x!r})")
    return x


def _value(x: Any, kind: Any, where: str) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return x if isinstance(x, kind) else from_dict(x, kind, where)
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if not isinstance(x, list | tuple):
            raise UserError(f"{where}: must be a tuple (got {x!r}); write ({x!r},)")
        return tuple(_value(v, item, f"{where}[{i}]") for i, v in enumerate(x))
    if kind is float and type(x) is int:
        return float(x)
    if type(x) is not kind:
        raise UserError(f"{where}: must be {kind.__name__} (got {x!r})")
    return x


def to_config_dict(cfg: Any) -> Any:
    """A dataclass as an unlocked ConfigDict, for a recipe to change."""

    def value(x: Any, field: Any) -> Any:
        if field.metadata.get("length"):  # takes a number and a text
            return FieldReference(x, field_type=object)
        return plain(x)

    def plain(x: Any) -> Any:
        if dataclasses.is_dataclass(x):
            return ConfigDict({f.name: value(getattr(x, f.name), f) for f in dataclasses.fields(x)})
        return tuple(plain(v) for v in x) if isinstance(x, tuple) else x

    return plain(cfg)


def default() -> Any:
    """All fields at their defaults, as a ConfigDict: what a recipe starts from."""
    return to_config_dict(Config())


def flatten(cfg: Any, prefix: str = "") -> dict[str, Any]:
    """{'model.image.width': 768, ...}; tuples of dataclasses as 'eval.tasks[0].name'."""
    out: dict[str, Any] = {}
    for field in dataclasses.fields(cfg):
        value, path = getattr(cfg, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            out.update(flatten(value, path + "."))
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for i, item in enumerate(value):
                out.update(flatten(item, f"{path}[{i}]."))
        else:
            out[path] = value
    return out


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """{path: (old, new)} of the fields that differ; None where a side lacks the path."""
    a, b = flatten(old), flatten(new)
    return {p: (a.get(p), b.get(p)) for p in {**a, **b} if a.get(p) != b.get(p)}


def describe(kind: Any = Config, prefix: str = "config.") -> Iterator[tuple[str, str, Any, str]]:
    """(path, type, default, meaning) of every field, for --help."""
    types = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, path = types[field.name], prefix + field.name
        items = typing.get_args(hint)
        if dataclasses.is_dataclass(hint):
            yield from describe(hint, path + ".")
        elif items and dataclasses.is_dataclass(items[0]):
            yield path, "tuple of:", field.default, field.metadata["help"]
            yield from describe(items[0], path + "[i].")
        else:
            name = f"tuple of {items[0].__name__}" if items else hint.__name__
            if field.metadata.get("length"):
                name = "steps, '2Bex', '32ep'"
            yield path, name, field.default, field.metadata["help"]
