"""Image transforms on the host, with Pillow: uint8 in, uint8 out.

Letters: y x pixels, c channels. The bicubic resize is the larger half of the cost of an image.
"""

import math

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def resized(
    image: np.ndarray, shape: tuple[int, int, int], box: Box, interpolation: str = "bicubic"
) -> np.ndarray:
    """The part `box` (left, top, right, bottom) of `image`, with antialiasing.

    Args:
        image: uint8 (y, x, c), c = 1 or 3.
        shape: (y, x, c) of the result, with the same c.
        box: in pixels of `image`.
        interpolation: a key of FILTERS.

    Returns:
        uint8 (y, x, c).
    """
    height, width, channels = image.shape
    if image.shape == shape and box == (0, 0, width, height):
        return image
    picture = Image.fromarray(image[:, :, 0] if channels == 1 else image)
    out = picture.resize((shape[1], shape[0]), FILTERS[interpolation], box=box)
    return np.asarray(out).reshape(shape)


def evaluation(
    image: np.ndarray, shape: tuple[int, int, int], resize: str, interpolation: str = "bicubic"
) -> np.ndarray:
    """What a tower sees of an image in evaluation, as OpenCLIP and torchvision make it.

    Args:
        image: uint8 (y, x, c).
        shape: (y, x, c) of the result, with the same c.
        resize: 'squash' the whole image, or 'shortest': the smallest resize that covers `shape`
            (the other side rounded down), then a central crop. Not one resize of a part: Pillow
            chooses the order of its two passes by the sizes, and rounds between them.
        interpolation: a key of FILTERS.

    Returns:
        uint8 (y, x, c).
    """
    height, width, channels = image.shape
    y, x, _ = shape
    if resize == "squash":
        return resized(image, shape, (0, 0, width, height), interpolation)
    if y * width >= x * height:  # the rows decide
        grown = (y, max(x, int(y * width / height)), channels)
    else:
        grown = (max(y, int(x * height / width)), x, channels)
    whole = resized(image, grown, (0, 0, width, height), interpolation)
    top, left = int(round((grown[0] - y) / 2)), int(round((grown[1] - x) / 2))
    return whole[top : top + y, left : left + x]


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
