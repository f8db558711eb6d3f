"""Handwritten digits: scikit-learn's 1,797 grey 8x8 images as a TFDS data set, without TensorFlow.

Splits by the image's index i in `load_digits`: test i % 5 == 0 (360 images), validation
i % 10 == 1 (180), train the rest (1,257); 'train+validation' is every image outside test.
Train and validation images carry all the templates as captions, test images the prompt alone.
Prompt and names are seen in training, so a score here is classification by prompt, not zero-shot.
Costs: about a second, most of it for importing scikit-learn; 1 MB on disk.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from clip_jax.errors import UserError

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROMPT = "a photo of the number {}"
TEMPLATES = (
    PROMPT,
    "a handwritten {}",
    "the digit {}",
    "a small grey picture of the digit {}",
    "someone wrote the number {}",
    "{}",
)
SPLITS = ("train", "validation", "test")


def split_of(index: int) -> str:
    """The split of the image with this index in `load_digits`."""
    if index % 5 == 0:
        return "test"
    return "validation" if index % 10 == 1 else "train"


def load() -> tuple[Any, Any]:
    """Images (1797, 8, 8) uint8 in 0..255, white ink on black, and their digits (1797,) int64.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise UserError(
            "digits: the images come with scikit-learn, which cannot be imported "
            f'(got {e}); run pip install "clip-jax-pretrain[digits]"'
        ) from e
    data: Any = load_digits()  # ink in 0..16
    return (data.images * 255 / 16).round().astype("uint8"), data.target


class Digits(tfds.core.GeneratorBasedBuilder):
    """Digits with several captions each; the records stand in the order of `load_digits`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    url_infos = None  # nothing to download; TFDS's own needs the package importlib_resources

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of scikit-learn with captions.",
            homepage="https://archive.ics.uci.edu/dataset/80",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "captions": tfds.features.Sequence(tfds.features.Text()),
                    "label": tfds.features.Scalar(np.int64),
                    "name": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        images, digits = load()
        return {split: self._generate_examples(split, images, digits) for split in SPLITS}

    def _generate_examples(self, split: str, images: Any, digits: Any) -> Iterator[Any]:
        from PIL import Image

        for i, (image, digit) in enumerate(zip(images, digits, strict=True)):
            if split_of(i) != split:
                continue
            png = io.BytesIO()  # arrays would need TensorFlow to be encoded
            Image.fromarray(image).save(png, "png")
            png.seek(0)
            name = NAMES[digit]
            templates = (PROMPT,) if split == "test" else TEMPLATES
            captions = [t.format(name) for t in templates]
            yield i, {"image": png, "captions": captions, "label": int(digit), "name": name}
