"""Extension without a fork: a `kind` is a key of our dict, or the user's own `module:function`."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from clip_jax.errors import UserError, near


def resolve(kind: str, table: Mapping[str, Callable[..., Any]], where: str) -> Callable[..., Any]:
    """The function that serves `kind`.

    Args:
        kind: a key of `table`, or `package.module:function`, which is imported.
        table: what the package itself offers.
        where: config field that holds `kind`, for the message.

    Raises:
        UserError: neither, or the import fails.
    """
    if ":" not in kind:
        if kind not in table:
            known = ", ".join(sorted(table))
            raise UserError(
                f"{where}: unknown (got '{kind}'); use {known} or package.module:function"
                f"{near(kind, table)}"
            )
        return table[kind]
    module, _, name = kind.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as e:
        if not e.name or not f"{module}.".startswith(f"{e.name}."):
            raise  # the user's module is there; something that it imports is not
        raise UserError(
            f"{where}: no module '{module}' (got '{kind}'); put its folder on PYTHONPATH"
        ) from e
    except (AttributeError, ValueError) as e:
        raise UserError(
            f"{where}: no function '{name}' in '{module}' (got '{kind}'); write module:function"
        ) from e
