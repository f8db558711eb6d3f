"""Shared builders: the smallest config that has every part, and pairs to train it on."""

import csv
import dataclasses
import io
from pathlib import Path

import numpy as np
from PIL import Image

from clip_jax.config import schema
from clip_jax.config.schema import Config

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 30),
    "blue": (40, 40, 220),
    "yellow": (230, 220, 40),
    "white": (240, 240, 240),
    "black": (10, 10, 10),
    "purple": (150, 30, 180),
    "orange": (250, 140, 20),
}


def png(seed: int, colour: tuple[int, int, int], size: int = 16) -> bytes:
    """A noisy picture of one colour."""
    noise = np.random.default_rng(seed).integers(-10, 10, (size, size, 3))
    pixels = np.clip(np.asarray(colour) + noise, 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


def write_folder(folder: Path, count: int = 64) -> Path:
    """A folder of coloured squares with captions.csv (columns image, caption, name)."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "captions.csv", "w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["image", "caption", "name"])
        for i in range(count):
            name = list(COLOURS)[i % len(COLOURS)]
            (folder / f"{i:04d}.png").write_bytes(png(i, COLOURS[name]))
            rows.writerow([f"{i:04d}.png", f"a {name} square", name])
    return folder


def model() -> schema.ModelConfig:
    """About 10,000 parameters."""
    image = schema.ImageConfig(
        size=16,
        patch=8,
        width=16,
        layers=2,
        heads=2,
        mlp_dim=32,
        class_token=False,
        ln_pre=False,
        pool="mean",
    )
    text = schema.TextConfig(
        context=8,
        vocab_size=300,
        width=16,
        layers=1,
        heads=2,
        mlp_dim=32,
        pool="mean",
        causal=False,
        mask_pads=True,
        eos_id=1,
    )
    return schema.ModelConfig(image=image, text=text, embed_dim=16)


def config(folder: Path | str, **changes) -> Config:
    """A run of 8 steps over `folder` (write_folder); `changes` are fields of Config."""
    pairs = schema.SplitConfig(kind="folder", paths=(str(folder),))
    cfg = Config(
        name="tiny",
        batch_size=16,
        num_steps=8,
        model=model(),
        data=schema.DataConfig(train=pairs, test=pairs, group_by="caption"),
        augment=schema.AugmentConfig(shift=1.0, dim=0.2),
        optim=schema.OptimConfig(learning_rate=1e-3, warmup_steps=2),
        mesh=schema.MeshConfig(data=1),
        eval=schema.EvalConfig(
            batch_size=16,
            tasks=(
                schema.TaskConfig(
                    name="colours", label_field="name", templates=("a {} square", "{}")
                ),
            ),
        ),
        checkpoint=schema.CheckpointConfig(every=4),
        log=schema.LogConfig(every=1),
    )
    return dataclasses.replace(cfg, **changes)
