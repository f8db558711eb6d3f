"""clip_jax.pretrain: a training run from Python, as `clip_jax train` does it."""

import os
from typing import Any

from clip_jax import files
from clip_jax.config.codec import from_dict
from clip_jax.config.load import checked, load
from clip_jax.config.schema import Config
from clip_jax.data.sources import counter
from clip_jax.train import loop


def pretrain(config: Any, workdir: str | os.PathLike[str], *, accept_changes: bool = False) -> None:
    """Trains a CLIP and leaves everything in `workdir`; goes on where an earlier call stopped.

    Args:
        config: a Config, a ConfigDict (or dict) of its fields, or the name or
            path of a recipe ("glyphs").
        workdir: folder or URL of the run.
        accept_changes: go on although optimizer, schedule or length changed.

    Raises:
        UserError: what you can mend, in one line.
    """
    workdir = files.resolved(workdir)
    pairs = counter(workdir)
    if isinstance(config, str | os.PathLike):
        config = load(os.fspath(config), pairs=pairs)
    elif not isinstance(config, Config):
        config = from_dict(config)
    loop.run(checked(config, pairs=pairs), workdir, accept_changes=accept_changes)
