"""A model to use: embed images and texts, classify.

Letters: b images or texts, y x pixels, c channels, t tokens, n classes, e embedding.
Work goes in padded batches of few sizes, so each function compiles once per size; images are
decoded in threads, while the device works on the batch before.
"""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh, PartitionSpec

from clip_jax import files
from clip_jax.config.schema import Config
from clip_jax.data.feed import host_rows, put
from clip_jax.data.record import BadRecord, decode_image
from clip_jax.data.transforms import evaluation
from clip_jax.errors import UserError
from clip_jax.inference.prompts import class_embeddings
from clip_jax.models import dual
from clip_jax.sharding.mesh import num_batch_shards
from clip_jax.tokenizers import Tokenizer

Image = str | os.PathLike[str] | bytes | np.ndarray

# What image generators take of a text tower: layer, final norm, what fills a row after its end.
# Stable Diffusion 1 and 2, and SDXL: OpenAI's L-14 padded with ends of text, OpenCLIP's bigG-14
# with zeros.
GENERATORS = {"sd1": (-1, True, "eos"), "sd2": (-2, True, "zero"), "sdxl": (-2, False, "sdxl")}


@functools.lru_cache(maxsize=16)
def _encoder(model: dual.DualEncoder, side: str) -> Callable[..., jax.Array]:
    """The jitted tower of one side, with normalisation before and L2 after. Kept per model.

    side: "image", "text", or "sequence LAYER FINAL_NORM" for the states of all tokens.
    """

    def encode(params: Any, stats: Any, x: jax.Array) -> jax.Array:
        if side.startswith("sequence"):
            _, layer, final_norm = side.split()
            return model.text_sequence(params, x, int(layer), final_norm == "True")
        if side == "image":
            x = dual.normalise(x, model.cfg.image)
        return dual.unit(model.features(side, params, stats, x))

    # Whole on every device, so that each host can read all rows.
    return jax.jit(encode, out_shardings=PartitionSpec())


@dataclasses.dataclass(frozen=True)
class Model:
    """Parameters with all that is needed to use them.

    Attributes:
        config: of the run that made it.
        params: {"image", "text", "logit"}, on `mesh`.
        stats: running statistics of batch norms, on `mesh`; {} for transformers.
        tokenizer: from captions to ids.
        mesh: devices that share the work.
        batch_size: images or texts per call of a tower.
        progress: show a bar on a terminal when there is more than one batch.
    """

    config: Config
    params: dict[str, Any]
    stats: dict[str, Any]
    tokenizer: Tokenizer
    mesh: Mesh
    batch_size: int = 256
    progress: bool = False

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
        return evaluation(array, cfg.shape(), cfg.resize, cfg.interpolation)

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """int32 (b, t)."""
        return self.tokenizer(list(texts), self.config.model.text.context)

    def embed_images(self, images: Sequence[Image]) -> np.ndarray:
        """float32 (b, e), L2-normalised."""
        if isinstance(images, str | bytes | os.PathLike | np.ndarray):
            raise UserError("embed_images: wants a list of images; write [image]")
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            prepare = lambda part: np.stack(list(threads.map(self.preprocess, part)))  # noqa: E731
            return self._embed("image", prepare, images)

    def embed_texts(
        self,
        texts: Sequence[str],
        *,
        output: str = "pooled",
        layer: int = -1,
        final_norm: bool = True,
    ) -> np.ndarray:
        """Texts as vectors.

        Args:
            texts: b of them.
            output: "pooled" for one embedding per text; "sequence" for the states of all tokens,
                or a key of GENERATORS for those that an image generator was trained with.
            layer: with "sequence": -1 = after the last block, -2 = after the one before.
            final_norm: with "sequence": whether the tower's last layer norm acts on them.

        Returns:
            float32 (b, e), L2-normalised; or (b, t, d).
        """
        if isinstance(texts, str):
            raise UserError(f"embed_texts: wants a list of texts; write [{texts!r}]")
        if output == "pooled":
            return self._embed("text", self.tokenize, texts)
        pads = "own"
        if output in GENERATORS:
            layer, final_norm, pads = GENERATORS[output]
        elif output != "sequence":
            known = ("pooled", "sequence", *GENERATORS)
            raise UserError(f"output: must be one of {', '.join(known)} (got {output!r})")
        layers = self.config.model.text.layers
        if not -layers <= layer <= -1:
            raise UserError(f"layer: must lie in {-layers}..-1 (got {layer})")
        side = f"sequence {layer} {final_norm}"
        return self._embed(side, lambda part: self._padded(part, pads), texts)

    def _padded(self, texts: Sequence[str], pads: str) -> np.ndarray:
        """int32 (b, t), filled as `pads` says: "own", "eos", "zero", or "sdxl": by the tower."""
        ids, text = self.tokenize(texts), self.config.model.text
        if pads == "own":
            return ids
        if pads == "sdxl":  # QuickGELU tells OpenAI's towers from OpenCLIP's
            pads = "eos" if text.activation == "quick_gelu" else "zero"
        after = np.cumsum(ids == text.eos_id, axis=1) - (ids == text.eos_id) > 0  # past the first
        return np.where(after, text.eos_id if pads == "eos" else 0, ids).astype(np.int32)

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
        out: list[np.ndarray] = []
        running: list[tuple[jax.Array, int]] = []  # at most one batch, while the next is prepared
        with jax.set_mesh(self.mesh):
            starts = range(0, len(items), size)
            hidden = None if self.progress and len(starts) > 1 else True  # None: on terminals only
            for i in tqdm.tqdm(starts, disable=hidden, leave=False, unit="batch"):
                part = items[i : i + size]
                rows = host_rows(bucket(len(part), size, shards), self.mesh)
                own = [part[r] for r in rows if r < len(part)]  # another host has the others
                x = prepare(own or part[:1])
                padded = np.concatenate([x, np.repeat(x[:1], len(rows) - len(x), axis=0)])
                z = encode(self.params, self.stats, put({"x": padded}, self.mesh)["x"])
                running.append((z, len(part)))
                if len(running) == 2:
                    out.append(_fetch(*running.pop(0)))
            out += [_fetch(*last) for last in running]
        if out:
            return np.concatenate(out)
        text, pooled = self.config.model.text, (0, self.config.model.embed_dim)
        shape = pooled if side in ("image", "text") else (0, text.context, text.width)
        return np.zeros(shape, np.float32)


def bucket(count: int, size: int, shards: int) -> int:
    """Rows that `count` are padded to: few sizes, so few compilations, and little waste.

    Args:
        count: rows at hand, 1..size.
        size: of a full batch, a multiple of `shards`.
        shards: into how many parts a batch is split.
    """
    rows = shards
    while rows < count:
        rows *= 2
    return min(rows, size)


def _fetch(z: jax.Array, count: int) -> np.ndarray:
    return jax.device_get(z)[:count]


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
