"""The dual encoder: two towers and the logit parameters, as two pure functions.

Letters: b batch, y x pixels, c channels, t tokens, e embedding.
Parameters: {"image": ..., "text": ..., "logit": {"scale": (), "bias": ()}}; the scale is a log.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.config.extend import resolve
from clip_jax.config.schema import AugmentConfig, ImageConfig, ModelConfig
from clip_jax.models import augment as pixels
from clip_jax.models.text import TextTransformer
from clip_jax.models.vit import ViT

Params = dict[str, Any]
TOWERS: dict[str, Callable[..., Any]] = {"vit": ViT, "transformer": TextTransformer}


@dataclasses.dataclass(frozen=True)
class DualEncoder:
    """The two towers. Hashable, so that a jitted function can be kept per model."""

    cfg: ModelConfig
    augment: AugmentConfig = AugmentConfig()

    def _tower(self, cfg: Any, name: str) -> Any:
        build = resolve(cfg.kind, TOWERS, f"config.model.{name}.kind")
        speed = {"remat": self.cfg.remat, "unroll": min(self.cfg.unroll, cfg.layers)}
        return build(cfg, self.cfg.embed_dim, dtype=jnp.dtype(self.cfg.dtype), **speed)

    def init_params(self, rng: jax.Array) -> Params:
        """Fresh float32 parameters; jit it (or eval_shape it for shapes only)."""
        image, text = self.cfg.image, self.cfg.text
        image_rng, text_rng = jax.random.split(rng)
        pixels_ = jnp.zeros((1, image.size, image.size, image.channels))
        ids = jnp.zeros((1, text.context), jnp.int32)
        # Typed float32: a weakly typed scalar would compile the second step again.
        logit = {"scale": jnp.asarray(self.cfg.logit_scale_init, jnp.float32)}
        if self.cfg.logit_bias:
            logit["bias"] = jnp.asarray(self.cfg.logit_bias_init, jnp.float32)
        return {
            "image": self._tower(image, "image").init(image_rng, pixels_)["params"],
            "text": self._tower(text, "text").init(text_rng, ids)["params"],
            "logit": logit,
        }

    def image_features(self, params: Params, image: jax.Array) -> jax.Array:
        """Normalised pixels (b, y, x, c) -> float32 (b, e), before the L2 norm."""
        tower = self._tower(self.cfg.image, "image")
        return tower.apply({"params": params["image"]}, image).astype(jnp.float32)

    def text_features(self, params: Params, ids: jax.Array) -> jax.Array:
        """ids int32 (b, t) -> float32 (b, e), before the L2 norm."""
        tower = self._tower(self.cfg.text, "text")
        return tower.apply({"params": params["text"]}, ids).astype(jnp.float32)

    def embed(
        self, params: Params, stats: Params, batch: dict[str, jax.Array], rng: jax.Array | None
    ) -> tuple[dict[str, jax.Array], Params]:
        """Both embeddings of a batch.

        Args:
            params: of init_params.
            stats: running statistics of batch norms; empty for transformers.
            batch: image uint8 (b, y, x, c), text int32 (b, t), index uint32 (b, 2).
            rng: key of the step, or None in evaluation (no augmentation).

        Returns:
            {"image", "text"}: float32 (b, e) of unit length; and the new stats.
        """
        image = batch["image"]
        if rng is not None and not pixels.is_off(self.augment):
            image = pixels.augment(image, pixels.sample_keys(rng, batch["index"]), self.augment)
        return {
            "image": unit(self.image_features(params, normalise(image, self.cfg.image))),
            "text": unit(self.text_features(params, batch["text"])),
        }, stats


def normalise(image: jax.Array, cfg: ImageConfig) -> jax.Array:
    """uint8 pixels (b, y, x, c) -> what the image tower wants, float32."""
    return pixels.normalise(image, cfg)


def unit(z: jax.Array) -> jax.Array:
    """z (b, e) divided by its length; a zero vector stays zero, with a finite gradient."""
    return z * jax.lax.rsqrt(jnp.maximum(jnp.sum(z * z, axis=-1, keepdims=True), 1e-24))


def build(cfg: ModelConfig, augment: AugmentConfig | None = None) -> DualEncoder:
    """The model of `cfg`; `augment` acts in training only."""
    return DualEncoder(cfg, augment or AugmentConfig())
