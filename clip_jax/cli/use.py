"""What the verbs that use a model share: options, and a model with nothing said on stdout."""

import argparse
import contextlib
import dataclasses
import sys
from typing import TYPE_CHECKING, NoReturn

from clip_jax.errors import UserError
from clip_jax.files import resolved

if TYPE_CHECKING:
    from clip_jax.inference.api import Model

SOURCE = "the model: what clip_jax.load takes, such as the workdir of a run"


class Parser(argparse.ArgumentParser):
    """argparse with underscores as they are, whole names only, and mistakes as one line."""

    def __init__(self, verb: str, description: str):
        super().__init__(prog=f"clip_jax {verb}", description=description, allow_abbrev=False)

    def add_model(self, help: str = SOURCE) -> None:
        """The arguments that say which model."""
        self.add_argument("source", type=resolved, help=help)
        self.add_argument(
            "--config", help="name of the model (ViT-B-32), for weights that come without one"
        )

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{self.prog.partition(' ')[2]}: {message}; see {self.prog} --help")


def at_least_one(text: str) -> int:
    """A whole number from 1 on, for `type=`."""
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on (got '{text}')")
    return value


def load_model(
    source: str, config: str | None = None, batch_size: int = 0, *, ema: bool = False
) -> "Model":
    """The model, with another batch size if one is given; what is said goes to stderr.

    Raises:
        UserError: as clip_jax.load does.
    """
    from clip_jax.inference.load import load

    with contextlib.redirect_stdout(sys.stderr):
        model = load(source, config=config, ema=ema)
    return dataclasses.replace(model, batch_size=batch_size) if batch_size else model
