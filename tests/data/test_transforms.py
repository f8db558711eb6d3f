"""Host transforms against Pillow used plainly, and the rule of the random crop."""

import numpy as np
import pytest
from PIL import Image

from clip_jax.data.transforms import evaluation_box, random_box, resized

pytestmark = pytest.mark.core


def picture(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_is_pillows_bicubic(channels):
    image = picture(37, 50, channels)
    pil = Image.fromarray(image[:, :, 0] if channels == 1 else image)
    want = np.asarray(pil.crop((5, 3, 45, 33)).resize((16, 16), Image.Resampling.BICUBIC))
    got = resized(image, 16, (5, 3, 45, 33))
    assert got.shape == (16, 16, channels) and got.dtype == np.uint8
    # the fused box reads pixels outside the crop at its border
    assert np.abs(got.squeeze().astype(int) - want.astype(int))[2:-2, 2:-2].max() <= 1


def test_the_right_size_is_left_alone():
    image = picture(16, 16)
    assert resized(image, 16, evaluation_box(16, 16, "shortest")) is image


def test_evaluation_boxes():
    assert evaluation_box(30, 50, "shortest") == (10, 0, 40, 30)
    assert evaluation_box(50, 30, "shortest") == (0, 10, 30, 40)
    assert evaluation_box(30, 50, "squash") == (0, 0, 50, 30)


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
