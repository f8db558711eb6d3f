"""A recipe for tests that run the command: `--config=.../tiny_recipe.py:FOLDER`."""

import tiny
from clip_jax.config.codec import to_config_dict


def get_config(arg: str = ""):
    """The tiny run over the folder `arg` (tiny.write_folder)."""
    return to_config_dict(tiny.config(arg))
