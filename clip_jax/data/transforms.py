"""Image transforms on the host, with Pillow: uint8 in, uint8 out.

Letters: y x pixels, c channels. The bicubic resize is the larger half of the cost of an image.
"""

import math

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]


def resized(image: np.ndarray, size: int, box: Box) -> np.ndarray:
    """The part `box` (left, top, right, bottom) of `image`, bicubic with antialiasing.

    Args:
        image: uint8 (y, x, c), c = 1 or 3.
        size: side of the square result, pixels.
        box: in pixels of `image`.

    Returns:
        uint8 (size, size, c).
    """
    height, width, channels = image.shape
    if (height, width) == (size, size) and box == (0, 0, width, height):
        return image
    picture = Image.fromarray(image[:, :, 0] if channels == 1 else image)
    out = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(out).reshape(size, size, channels)


def evaluation_box(height: int, width: int, resize: str) -> Box:
    """The whole image for 'squash', the central square for 'shortest'."""
    if resize == "squash" or height == width:
        return (0, 0, width, height)
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side)


def random_box(
    height: int,
    width: int,
    scale: tuple[float, ...],
    ratio: tuple[float, ...],
    rng: np.random.Generator,
) -> Box:
    """Random resized crop by torchvision's rule: ten tries, then the largest central crop.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        scale: lowest and highest share of the area.
        ratio: lowest and highest width / height.
        rng: of the sample.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * rng.uniform(scale[0], scale[1])
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            return (left, top, left + w, top + h)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - w) // 2, (height - h) // 2
    return (left, top, left + w, top + h)
