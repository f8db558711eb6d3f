"""What the verbs that use a model share: options, and a model with nothing said on stdout."""

import contextlib
import dataclasses
import sys
from typing import TYPE_CHECKING

from clip_jax.config.options import Options
from clip_jax.files import resolved

if TYPE_CHECKING:
    from clip_jax.inference.api import Model

SOURCE = "the model: what clip_jax.load takes, such as the workdir of a run"


class Parser(Options):
    """The options of a verb that uses a model."""

    def add_model(self, help: str = SOURCE) -> None:
        """The arguments that say which model."""
        self.add_argument("source", type=resolved, help=help)
        self.add_argument(
            "--config", help="name of the model (ViT-B-32), for weights that come without one"
        )


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
