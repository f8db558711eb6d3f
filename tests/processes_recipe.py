"""The tiny run for several processes, and ways in which one of them may differ or break.

`--config=.../processes_recipe.py:FOLDER`; the environment variable TINY_FAULT names the fault of
process 1. What a fault does stands here, not in the package. TINY_INIT names a run to start from.
"""

import dataclasses
import os

import tiny
from clip_jax.config import schema
from clip_jax.config.codec import to_config_dict
from clip_jax.data.sources import folder


def faulty(name: str) -> bool:
    """Whether this process has the fault `name`."""
    me = os.environ.get("CLIP_JAX_PROCESS_ID", "0")
    return me == "1" and os.environ.get("TINY_FAULT") == name


def open_pairs(cfg: schema.SplitConfig, index_dir: str) -> folder.Folder:
    """The folder of `cfg`; the fault "data" is one pair less, "bug" what no code expects."""
    if faulty("bug"):
        raise ZeroDivisionError("the fault of process 1")
    source = folder.open_folder(cfg, index_dir)
    return folder.Folder(source._rows[:-1]) if faulty("data") else source


def get_config(arg: str = ""):
    """The tiny run over the folder `arg`, on all devices."""
    pairs = schema.SplitConfig(kind="processes_recipe:open_pairs", paths=(arg,))
    data = dataclasses.replace(tiny.config(arg).data, train=pairs)
    cfg = tiny.config(arg, data=data, mesh=schema.MeshConfig(), seed=int(faulty("seed")))
    if weights := os.environ.get("TINY_INIT"):  # in two stages, from another run's image tower
        init = (schema.InitConfig(weights=weights, parts="image/.*"),)
        stages = (
            schema.StageConfig("a", ("num_steps=4",)),
            schema.StageConfig("b", ("num_steps=3", "batch_size=8", "model.image.size=24")),
        )
        cfg = dataclasses.replace(cfg, init=init, stages=stages)
    return to_config_dict(cfg)
