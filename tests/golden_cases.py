"""The golden cases: their configs and weights through clip_jax.interop. See golden/README.md."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.config.schema import ImageConfig, ModelConfig, TextConfig
from clip_jax.interop import build, hf, open_clip, table
from clip_jax.interop.open_file import open_tensors

GOLDEN = Path(__file__).parent / "golden"
OPEN_CLIP = ("vit_gelu", "vit_quickgelu", "resnet", "siglip", "clipa")
HF = ("hf_clip", "hf_siglip")
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # their images are normalised already


def settings(case: str) -> dict[str, Any]:
    """config.json of a case."""
    return json.loads((GOLDEN / case / "config.json").read_text())


def model_config(case: str) -> ModelConfig:
    """Our config of a golden case, from its plain fields."""
    if case in HF:
        path = GOLDEN / case / "model" / "config.json"
        pixels = {"image_mean": PLAIN["mean"], "image_std": PLAIN["std"]}
        return hf.to_model(json.loads(path.read_text()), pixels, str(path))
    c = settings(case)
    v, t = c["vision"], c["text"]
    if case == "resnet":
        image = ImageConfig(
            kind="resnet", size=v["image_size"], width=v["width"], stages=tuple(v["layers"]),
            heads=v["heads"], **PLAIN,
        )  # fmt: skip
    else:
        map_pool, mean_pool = v["pool"] == "map", v["pool"].startswith("avg")
        image = ImageConfig(
            size=v["image_size"],
            patch=v["patch_size"],
            patch_bias=v.get("conv_bias", False),
            width=v["width"],
            layers=v["layers"],
            heads=v["heads"],
            mlp_dim=v["mlp_dim"],
            class_token=v.get("class_token", True),
            posemb="sincos2d_mae" if "sincos" in v.get("pos_embed", "") else "learned",
            ln_pre=v["pre_ln"],
            pool="map" if map_pool else "mean" if mean_pool else "cls",
            ln_post="after" if v.get("final_ln_after_pool") else "before",
            projection=v.get("proj", "linear"),
            activation=v["act"],
            ln_eps=v["ln_eps"],
            **PLAIN,
        )
    text = TextConfig(
        context=t["context_length"],
        vocab_size=t["vocab_size"],
        width=t["width"],
        layers=t["layers"],
        heads=t["heads"],
        mlp_dim=t["mlp_dim"],
        pool="eos" if t["pool"] == "argmax" else t["pool"],
        causal=t["causal"],
        projection="bias" if t["proj_bias"] else t["proj"],
        activation=t["act"],
        ln_eps=t["ln_eps"],
        eos_id=t["vocab_size"] - 1,
    )
    return ModelConfig(
        image=image,
        text=text,
        embed_dim=c["embed_dim"],
        logit_scale_init=c["logit_scale_init"],
        logit_bias=c["logit_bias_init"] is not None,
        logit_bias_init=c["logit_bias_init"] or 0.0,
    )


def rules(case: str, cfg: ModelConfig) -> list[table.Rule]:
    """The names of a case."""
    return hf.table(cfg) if case in HF else open_clip.table(cfg)


def flat(case: str, cfg: ModelConfig, file: str) -> dict[str, np.ndarray]:
    """{our path: array} of weights, gradients or final weights; what the file lacks is left out."""
    tensors = open_tensors(str(GOLDEN / case / file))
    shapes = {p: x.shape for p, x in build.model_shapes(cfg).items()}
    here = [
        r
        for r in rules(case, cfg)
        if r.constant is None and r.theirs.replace("{i}", "0") in tensors.shapes
    ]
    return dict(table.read_leaves(here, tensors, shapes))


def weights(case: str, cfg: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and stats of a case."""
    return build.split(flat(case, cfg, WEIGHTS[case in HF]))


WEIGHTS = ("weights.safetensors", "model/model.safetensors")
