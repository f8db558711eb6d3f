"""The tiny run in three stages of other sizes: `--config=.../stages_recipe.py:FOLDER`."""

import tiny
from clip_jax.config.codec import to_config_dict
from clip_jax.config.schema import CheckpointConfig, StageConfig

MEETINGS = (0, 40, 80, 110)


def get_config(arg: str = ""):
    """Steps 1 to 40 on small images, to 80 on large ones, to 110 with short texts."""
    stages = (
        StageConfig("small", ("num_steps=40", "model.image.patch_dropout=0.5")),
        StageConfig("large", ("num_steps=40", "batch_size=8", "model.image.size=24")),
        StageConfig("short", ("num_steps=30", "model.text.context=6")),
    )
    cfg = tiny.config(arg, stages=stages, num_steps=1, checkpoint=CheckpointConfig(every=15))
    return to_config_dict(cfg)
