"""A trained model to use: embed images and texts, classify.

Letters: b images or texts, y x pixels, c channels, t tokens, n classes, e embedding.
Work goes in padded batches of one size, so each function compiles once.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from clip_jax import files
from clip_jax.checkpoint.manager import Checkpoints
from clip_jax.config.schema import Config, MeshConfig
from clip_jax.config.stored import read_config
from clip_jax.data.feed import put
from clip_jax.data.record import BadRecord, decode_image
from clip_jax.data.transforms import evaluation_box, resized
from clip_jax.errors import UserError
from clip_jax.inference.prompts import class_embeddings
from clip_jax.models import dual
from clip_jax.sharding.mesh import make_mesh, num_batch_shards
from clip_jax.sharding.rules import shardings
from clip_jax.tokenizers import Tokenizer
from clip_jax.tokenizers import build as build_tokenizer

Image = str | os.PathLike[str] | bytes | np.ndarray


@functools.lru_cache(maxsize=16)
def _encoder(model: dual.DualEncoder, side: str) -> Callable[..., jax.Array]:
    """The jitted tower of one side, with normalisation before and L2 after. Kept per model."""

    def image(params: Any, x: jax.Array) -> jax.Array:
        return dual.unit(model.image_features(params, dual.normalise(x, model.cfg.image)))

    def text(params: Any, x: jax.Array) -> jax.Array:
        return dual.unit(model.text_features(params, x))

    # Whole on every device, so that each host can read all rows.
    return jax.jit(image if side == "image" else text, out_shardings=PartitionSpec())


@dataclasses.dataclass(frozen=True)
class Model:
    """Parameters with all that is needed to use them.

    Attributes:
        config: of the run that made it.
        params: {"image", "text", "logit"}, on `mesh`.
        tokenizer: from captions to ids.
        mesh: devices that share the work.
        batch_size: images or texts per call of a tower.
    """

    config: Config
    params: dict[str, Any]
    tokenizer: Tokenizer
    mesh: Mesh
    batch_size: int = 256

    def preprocess(self, image: Image) -> np.ndarray:
        """A path, encoded bytes or uint8 array (y, x[, c]) as the tower's uint8 (y, x, c).

        Raises:
            UserError: the image cannot be read.
        """
        cfg = self.config.model.image
        try:
            array = _pixels(image, cfg.channels)
        except (BadRecord, OSError) as e:
            name = "image" if isinstance(image, bytes | np.ndarray) else str(image)
            raise UserError(f"{name}: cannot be read ({e}); give a JPEG, PNG or WebP") from e
        height, width, _ = array.shape
        return resized(array, cfg.size, evaluation_box(height, width, cfg.resize))

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """int32 (b, t)."""
        return self.tokenizer(list(texts), self.config.model.text.context)

    def embed_images(self, images: Sequence[Image]) -> np.ndarray:
        """float32 (b, e), L2-normalised."""
        return self._embed(
            "image", lambda part: np.stack([self.preprocess(x) for x in part]), images
        )

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (b, e), L2-normalised."""
        return self._embed("text", self.tokenize, texts)

    def classify(
        self, images: Sequence[Image], labels: Sequence[str], templates: Sequence[str] = ("{}",)
    ) -> np.ndarray:
        """Probability of each label for each image, float32 (b, n); rows sum to 1.

        Args:
            images: paths, encoded bytes or arrays.
            labels: class names.
            templates: prompts with one {} each, such as "a photo of a {}.".
        """
        classes = class_embeddings(self.embed_texts, labels, templates)  # (n, e)
        logits = self.logit_scale() * self.embed_images(images) @ classes.T  # (b, n)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (p / p.sum(axis=1, keepdims=True)).astype(np.float32)

    def logit_scale(self) -> float:
        """exp of the learned log scale."""
        return float(np.exp(jax.device_get(self.params["logit"]["scale"])))

    def _embed(
        self, side: str, prepare: Callable[[Sequence[Any]], np.ndarray], items: Sequence[Any]
    ) -> np.ndarray:
        shards = num_batch_shards(self.mesh)
        size = -(-self.batch_size // shards) * shards
        encode = _encoder(dual.build(self.config.model), side)
        out = []
        with jax.set_mesh(self.mesh):
            for i in range(0, len(items), size):
                x = prepare(items[i : i + size])
                padded = np.concatenate([x, np.repeat(x[:1], size - len(x), axis=0)])
                z = encode(self.params, put({"x": padded}, self.mesh)["x"])
                out.append(jax.device_get(z)[: len(x)])
        return (
            np.concatenate(out) if out else np.zeros((0, self.config.model.embed_dim), np.float32)
        )


def _pixels(image: Image, channels: int) -> np.ndarray:
    if isinstance(image, np.ndarray):
        array = image if image.ndim == 3 else image[:, :, None]
        if array.dtype != np.uint8:
            raise BadRecord(f"pixels must be uint8 (got {array.dtype})")
        if array.shape[2] == channels:
            return array
        if array.shape[2] == 1:
            return np.repeat(array, channels, axis=2)
        raise BadRecord(f"{array.shape[2]} channels; the model has {channels}")
    data = image if isinstance(image, bytes) else files.read_bytes(os.fspath(image))
    return decode_image(data, channels)


TOKENIZER_FILE = "tokenizer"


def load(run: str, *, step: int | None = None) -> Model:
    """The model of a run's newest good checkpoint, on all devices.

    Args:
        run: workdir of a training run.
        step: of a certain checkpoint instead.

    Raises:
        UserError: no run, or no checkpoint, lies there.
    """
    cfg = read_config(run)
    mesh = make_mesh(MeshConfig())
    model = dual.build(cfg.model)
    shapes = jax.eval_shape(model.init_params, jax.random.key(0))
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        shardings(shapes, mesh),
    )
    checkpoints = Checkpoints(run)
    restored = checkpoints.restore_latest({"params": abstract}, print)
    checkpoints.close()
    if restored is None:
        raise UserError(f"{run}: no checkpoint yet; train until the first is saved")
    tokenizer = build_tokenizer(
        cfg.tokenizer,
        vocab_size=cfg.model.text.vocab_size,
        stored=restored.extra_files[TOKENIZER_FILE],
    )
    return Model(cfg, restored.items["params"], tokenizer, mesh, cfg.eval.batch_size)
