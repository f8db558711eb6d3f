"""Command lines of the verbs: whole names only, underscores as they are, mistakes as one line."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from clip_jax.errors import UserError


class Options(argparse.ArgumentParser):
    """argparse whose mistakes are a UserError."""

    def __init__(self, verb: str, description: str):
        super().__init__(prog=f"clip_jax {verb}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{self.prog.partition(' ')[2]}: {message}; see {self.prog} --help")

    def parse_with_fields(self, argv: Sequence[str]) -> tuple[argparse.Namespace, tuple[str, ...]]:
        """The verb's own options, and those of fields, --config.FIELD=VALUE, for config.load."""
        own, overrides = split(argv)
        return self.parse_args(own), overrides


def split(argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Own options, and the overrides of fields."""
    own: list[str] = []
    overrides: list[str] = []
    rest = list(argv)
    while rest:
        item = rest.pop(0)
        if not item.startswith(("--config.", "--noconfig.")):
            own.append(item)
            continue
        if "=" not in item and rest and not rest[0].startswith("--"):
            item = f"{item}={rest.pop(0)}"
        overrides.append(item)
    return own, tuple(overrides)


def at_least_one(text: str) -> int:
    """A whole number from 1 on, such as 32_768, for `type=`."""
    digits = text.replace("_", "")
    value = int(digits) if digits.isascii() and digits.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on (got '{text}')")
    return value
