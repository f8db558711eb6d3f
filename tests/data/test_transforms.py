"""Host transforms against Pillow used plainly, and the rule of the random crop."""

import numpy as np
import pytest
from PIL import Image

from clip_jax.data.transforms import evaluation, random_box, resized

pytestmark = pytest.mark.core


def picture(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_is_pillows_bicubic(channels):
    image = picture(37, 50, channels)
    pil = Image.fromarray(image[:, :, 0] if channels == 1 else image)
    want = np.asarray(pil.crop((5, 3, 45, 33)).resize((16, 16), Image.Resampling.BICUBIC))
    got = resized(image, (16, 16, channels), (5, 3, 45, 33))
    assert got.shape == (16, 16, channels) and got.dtype == np.uint8
    # the fused box reads pixels outside the crop at its border
    assert np.abs(got.squeeze().astype(int) - want.astype(int))[2:-2, 2:-2].max() <= 1


def test_the_right_size_is_left_alone():
    image = picture(16, 16)
    assert np.shares_memory(evaluation(image, (16, 16, 3), "shortest"), image)


def plain(image, shape, resize):
    """torchvision's Resize(size), CenterCrop(size) as OpenCLIP calls them, by Pillow alone."""
    y, x, _ = shape
    picture = Image.fromarray(image)
    width, height = picture.size
    if resize == "squash":
        return np.asarray(picture.resize((x, y), Image.Resampling.BICUBIC))
    if y * width >= x * height:
        picture = picture.resize((int(y * width / height), y), Image.Resampling.BICUBIC)
    else:
        picture = picture.resize((x, int(x * height / width)), Image.Resampling.BICUBIC)
    left, top = int(round((picture.width - x) / 2)), int(round((picture.height - y) / 2))
    return np.asarray(picture.crop((left, top, left + x, top + y)))


@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("size", [(30, 50), (50, 30), (224, 224), (97, 61), (33, 400), (401, 57)])
@pytest.mark.parametrize("shape", [(24, 24, 3), (25, 25, 3), (16, 40, 3), (40, 17, 3)])
def test_evaluation_equals_resize_then_crop(resize, size, shape):
    image = picture(*size, seed=size[0])
    got = evaluation(image, shape, resize)
    want = plain(image, shape, resize)
    np.testing.assert_array_equal(got, want)


def test_bilinear_is_another_filter():
    image = picture(40, 40)
    box = (0, 0, 40, 40)
    want = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resized(image, (16, 16, 3), box, "bilinear"), want)
    assert np.abs(resized(image, (16, 16, 3), box).astype(int) - want).max() > 1


def test_random_boxes_keep_area_and_ratio():
    rng = np.random.default_rng(0)
    for _ in range(500):
        left, top, right, bottom = random_box(200, 300, (0.2, 0.6), (0.75, 4 / 3), rng)
        w, h = right - left, bottom - top
        assert 0 <= left and right <= 300 and 0 <= top and bottom <= 200
        assert 0.19 < w * h / 60000 < 0.61
        assert 0.74 < w / h < 1.35


def test_a_crop_that_never_fits_falls_back_to_the_centre():
    rng = np.random.default_rng(0)
    assert random_box(10, 1000, (0.9, 1.0), (0.75, 4 / 3), rng) == (493, 0, 506, 10)


def test_boxes_fill_the_image():
    rng = np.random.default_rng(1)
    boxes = np.array([random_box(40, 40, (0.1, 0.3), (0.75, 4 / 3), rng) for _ in range(800)])
    assert boxes[:, 0].min() == 0 and boxes[:, 2].max() == 40
    assert boxes[:, 1].min() == 0 and boxes[:, 3].max() == 40
