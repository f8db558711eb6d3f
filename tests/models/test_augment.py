"""On-device augmentation: identity, known transforms, one key per sample."""

import jax
import numpy as np

from clip_jax.config.schema import AugmentConfig, ImageConfig
from clip_jax.models.augment import augment, is_off, normalise, sample_keys


def images(b=4, size=9, channels=2):
    return np.random.default_rng(0).integers(0, 256, (b, size, size, channels), np.uint8)


def keys(b=4, start=0, seed=0):
    index = np.stack([np.zeros(b), start + np.arange(b)], 1).astype(np.uint32)
    return sample_keys(jax.random.key(seed), index)


def test_nothing_asked_changes_nothing():
    cfg = AugmentConfig()
    assert is_off(cfg)
    np.testing.assert_allclose(augment(images(), keys(), cfg), images(), atol=1e-3)


def test_the_same_sample_looks_the_same_in_any_batch():
    cfg = AugmentConfig(rotate=20, zoom=0.2, shift=2, dim=0.3)
    whole = augment(images(), keys(), cfg)
    part = augment(images()[2:], keys(2, start=2), cfg)
    np.testing.assert_array_equal(whole[2:], part)
    assert np.abs(np.asarray(augment(images(), keys(seed=1), cfg)) - whole).max() > 1


def test_high_words_of_positions_count():
    low = sample_keys(jax.random.key(0), np.array([[0, 7]], np.uint32))
    high = sample_keys(jax.random.key(0), np.array([[1, 7]], np.uint32))
    assert not np.array_equal(jax.random.key_data(low), jax.random.key_data(high))


def test_shifts_move_by_up_to_the_range():
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[None, :, None, None], (200, 32, 32, 1))
    out = np.asarray(augment(ramp, keys(200), AugmentConfig(shift=3.0)))
    moved = out[:, 16, 16, 0] - 16
    assert 2.5 < np.abs(moved).max() <= 3.001 and abs(moved.mean()) < 0.5


def test_dimming_only_darkens_within_the_range():
    white = np.full((200, 4, 4, 1), 200, np.uint8)
    out = np.asarray(augment(white, keys(200), AugmentConfig(dim=0.4)))[:, 1, 1, 0] / 200
    assert 0.6 <= out.min() < 0.65 and 0.95 < out.max() <= 1.0001


def test_rotation_is_a_rotation():
    """A quarter turn range: compare with scipy for the very angle that was drawn."""
    from scipy.ndimage import affine_transform

    cfg, image = AugmentConfig(rotate=90.0), images(1, 9, 1)
    key = keys(1)
    angle = np.deg2rad(90) * float(jax.random.uniform(key[0], (5,), minval=-1.0, maxval=1.0)[0])
    c, s = np.cos(angle), np.sin(angle)
    matrix = np.array([[c, -s], [s, c]])
    centre = np.array([4, 4])
    want = affine_transform(
        image[0, :, :, 0].astype(float), matrix, centre - matrix @ centre, order=1, mode="nearest"
    )
    np.testing.assert_allclose(augment(image, key, cfg)[0, :, :, 0], want, atol=0.5)


def test_normalise():
    cfg = ImageConfig(channels=2, mean=(0.5, 0.25), std=(0.5, 0.1))
    want = (images() / 255.0 - np.array([0.5, 0.25])) / np.array([0.5, 0.1])
    np.testing.assert_allclose(normalise(images(), cfg), want, atol=1e-5)
