"""The dual encoder: two towers and the logit parameters, as pure functions.

Letters: b batch, y x pixels, c channels, t tokens, d width, e embedding.
Parameters: {"image": ..., "text": ..., "logit": {"scale": (), "bias": ()}}; the scale is a log.
Stats: running statistics of the towers that have some, {"image": ...}; {} for transformers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from clip_jax.config.extend import resolve
from clip_jax.config.schema import AugmentConfig, ImageConfig, ModelConfig, TextConfig
from clip_jax.models import augment as pixels
from clip_jax.models.resnet import ModifiedResNet
from clip_jax.models.text import TextTransformer
from clip_jax.models.vit import ViT

Params = dict[str, Any]


class Tower(Protocol):
    """What a tower of your own must be; a linen module with `__call__(x, keys)` is one.

    x is the normalised image (b, y, x, c) or the ids (b, t); `keys` is one random key per sample
    (b,) in training and None in evaluation. It gives (b, e). Variables are "params" and, if it
    keeps running statistics, "stats".
    """

    def init(self, rng: Any, x: jax.Array, /) -> Any: ...

    def apply(self, variables: Any, /, *x_and_keys: Any, mutable: Any = False) -> Any:
        """With mutable=["stats"]: (output, {"stats": new})."""
        ...


# Each is called as (tower config, model config).
TOWERS: dict[str, Callable[..., Tower]] = {
    "vit": lambda c, m: ViT(c, m.embed_dim, m.init, **_speed(c, m)),
    "resnet": lambda c, m: ModifiedResNet(c, m.embed_dim, jnp.dtype(m.dtype), m.remat),
    "transformer": lambda c, m: TextTransformer(c, m.embed_dim, m.init, **_speed(c, m)),
}


def _speed(tower: ImageConfig | TextConfig, model: ModelConfig) -> dict[str, Any]:
    unroll = min(model.unroll, tower.layers)
    return {
        "dtype": jnp.dtype(model.dtype),
        "attention": model.attention,
        "remat": model.remat,
        "unroll": unroll,
    }


@dataclasses.dataclass(frozen=True)
class DualEncoder:
    """The two towers. Hashable, so that a jitted function can be kept per model."""

    cfg: ModelConfig
    augment: AugmentConfig = AugmentConfig()

    def _tower(self, side: str) -> Tower:
        cfg = getattr(self.cfg, side)
        return resolve(cfg.kind, TOWERS, f"config.model.{side}.kind")(cfg, self.cfg)

    @functools.partial(jax.jit, static_argnums=0)  # traced once per model, wherever it is wanted
    def init(self, rng: jax.Array) -> tuple[Params, Params]:
        """Fresh float32 parameters and stats; eval_shape it for shapes only."""
        image_rng, text_rng = jax.random.split(rng)
        pixels_ = jnp.zeros((1, *self.cfg.image.shape()))
        ids = jnp.zeros((1, self.cfg.text.context), jnp.int32)
        variables = {
            "image": self._tower("image").init(image_rng, pixels_),
            "text": self._tower("text").init(text_rng, ids),
        }
        # Typed float32: a weakly typed scalar would compile the second step again.
        logit = {"scale": jnp.asarray(self.cfg.logit_scale_init, jnp.float32)}
        if self.cfg.logit_bias:
            logit["bias"] = jnp.asarray(self.cfg.logit_bias_init, jnp.float32)
        params = {k: v["params"] for k, v in variables.items()} | {"logit": logit}
        return params, {k: v["stats"] for k, v in variables.items() if v.get("stats")}

    def features(self, side: str, params: Params, stats: Params, x: jax.Array) -> jax.Array:
        """Evaluation: normalised pixels or ids -> float32 (b, e), before the L2 norm.

        Args:
            side: "image" or "text".
            params: of init.
            stats: of init, or {}.
            x: (b, y, x, c) of `normalise`, or int32 (b, t).
        """
        return self._tower(side).apply(_variables(side, params, stats), x).astype(jnp.float32)

    def text_sequence(
        self, params: Params, ids: jax.Array, layer: int = -1, final_norm: bool = True
    ) -> jax.Array:
        """The states of all tokens after a block, for generators of images.

        Args:
            params: of init.
            ids: int32 (b, t).
            layer: -1 = after the last block, -2 = after the one before.
            final_norm: whether the tower's last layer norm acts on them.

        Returns:
            float32 (b, t, d).
        """
        text = dataclasses.replace(self.cfg.text, layers=self.cfg.text.layers + 1 + layer)
        tower = TextTransformer(
            text,
            self.cfg.embed_dim,
            self.cfg.init,
            sequence="normed" if final_norm else "raw",
            **_speed(text, self.cfg),
        )
        blocks = jax.tree.map(lambda x: x[: text.layers], params["text"]["blocks"])
        x: Any = tower.apply({"params": {**params["text"], "blocks": blocks}}, ids)
        return x.astype(jnp.float32)

    def embed(
        self, params: Params, stats: Params, batch: dict[str, jax.Array], rng: jax.Array | None
    ) -> tuple[dict[str, jax.Array], Params]:
        """Both embeddings of a batch.

        Args:
            params: of init.
            stats: running statistics of batch norms; empty for transformers.
            batch: image uint8 (b, y, x, c), text int32 (b, t), index uint32 (b, 2); optionally
                negative int32 (b, k, t), texts that belong to no image.
            rng: key of the step, or None in evaluation (nothing random, running statistics).

        Returns:
            {"image", "text"}: float32 (b, e) of unit length, and "negative" (b, k, e) where there
            are some; and the new stats.
        """
        image, keys = batch["image"], None
        if rng is not None:
            keys = pixels.sample_keys(rng, batch["index"])  # (b,)
            if not pixels.is_off(self.augment):
                image = pixels.augment(image, keys, self.augment)
        text, b = batch["text"], batch["text"].shape[0]
        if "negative" in batch:  # one pass of the tower over all texts of a sample
            text = jnp.concatenate([text[:, None], batch["negative"]], axis=1)  # (b, 1 + k, t)
            text = text.reshape(-1, text.shape[2])
        inputs = {"image": normalise(image, self.cfg.image), "text": text}
        z, new = {}, {}
        for number, (side, x) in enumerate(inputs.items(), 1):
            variables = _variables(side, params, stats)
            if keys is None:
                z[side] = self._tower(side).apply(variables, x)
            else:
                own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
                own = jnp.repeat(own, x.shape[0] // b)
                z[side], changed = self._tower(side).apply(variables, x, own, mutable=["stats"])
                new |= {side: changed["stats"]} if "stats" in changed else {}
        z = {side: unit(x.astype(jnp.float32)) for side, x in z.items()}
        if "negative" in batch:
            texts = z["text"].reshape(b, -1, z["text"].shape[1])
            z |= {"text": texts[:, 0], "negative": texts[:, 1:]}
        return z, new or stats


def _variables(side: str, params: Params, stats: Params) -> Params:
    return {"params": params[side]} | ({"stats": stats[side]} if side in stats else {})


def normalise(image: jax.Array, cfg: ImageConfig) -> jax.Array:
    """uint8 pixels (b, y, x, c) -> what the image tower wants, float32."""
    return pixels.normalise(image, cfg)


def unit(z: jax.Array) -> jax.Array:
    """z (b, e) divided by its length; a zero vector stays zero, with a finite gradient."""
    return z * jax.lax.rsqrt(jnp.maximum(jnp.sum(z * z, axis=-1, keepdims=True), 1e-24))


def build(cfg: ModelConfig, augment: AugmentConfig | None = None) -> DualEncoder:
    """The model of `cfg`; `augment` acts in training only."""
    return DualEncoder(cfg, augment or AugmentConfig())
