"""Decoding: every kind of image file against Pillow's own reading or known pixels."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from clip_jax.data import record
from clip_jax.data.record import BadRecord, clean_texts, decode_image, digest, scalars


def _photo(height=24, width=40) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 6, y * 10, (x + y) * 3], -1).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def _file(image, kind, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "JPEG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGB", "PNG"),
        ("RGBA", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("1", "PNG"),
        ("RGB", "WEBP"),
        ("RGBA", "WEBP"),
        ("P", "GIF"),
        ("RGB", "BMP"),
    ],
)
def test_reads_what_pillow_reads(mode, kind):
    data = _file(_photo().convert(mode), kind)
    with Image.open(io.BytesIO(data)) as image:
        want = np.asarray(image.convert("RGB"))
    with Image.open(io.BytesIO(data)) as image:
        want_grey = np.asarray(image.convert("L"))
    got = decode_image(data, 3)
    assert got.dtype == np.uint8 and got.shape == (24, 40, 3)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(decode_image(data, 1), want_grey[..., None])


def test_lossless_rgb_is_exact():
    np.testing.assert_array_equal(decode_image(_file(_photo(), "PNG"), 3), np.asarray(_photo()))


def test_alpha_is_dropped_not_composited():
    image = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert (decode_image(_file(image, "PNG"), 3) == [10, 20, 30]).all()


def test_palette_with_transparent_colours_does_not_warn():
    image = _photo().quantize(8)
    data = _file(image, "PNG", transparency=bytes([0, 128] + [255] * 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = decode_image(data, 3)
    np.testing.assert_array_equal(got, np.asarray(image.convert("RGB")))


def test_sixteen_bits_keep_the_high_byte():
    data = _file(Image.fromarray(np.array([[0, 255, 256, 30000, 65535]], np.uint16)), "PNG")
    assert decode_image(data, 1)[0, :, 0].tolist() == [0, 0, 1, 117, 255]
    assert decode_image(data, 3)[0, :, 2].tolist() == [0, 0, 1, 117, 255]


def test_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(_file(_photo(), "JPEG", exif=exif), 3).shape == (24, 40, 3)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    data = _file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode_image(data, 3) == [255, 0, 0]).all()


@pytest.mark.parametrize("size", [(1, 1), (20000, 1)])
def test_odd_shapes(size):
    got = decode_image(_file(Image.new("RGB", size, (1, 2, 3)), "PNG"), 3)
    assert got.shape == (size[1], size[0], 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_cut_files_are_bad(kind):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = _file(Image.fromarray(noise), kind)
    for size in range(0, len(data) - len(data) // 10, max(1, len(data) // 40)):
        with pytest.raises(BadRecord):
            decode_image(data[:size], 3)


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"\x00" * 100, b"II*\0" + b"\0" * 50])
def test_other_files_are_bad(data):
    with pytest.raises(BadRecord, match="no known format"):
        decode_image(data, 3)


def test_damaged_files_decode_or_are_bad():
    rng = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP"):
        clean = _file(_photo(), kind)
        for _ in range(60):
            data = bytearray(clean)
            for at in rng.integers(0, len(data), 4):
                data[at] = rng.integers(256)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Pillow's remarks on damaged metadata
                    pixels = decode_image(bytes(data), 3)
            except BadRecord:
                continue
            assert pixels.dtype == np.uint8 and pixels.ndim == 3


def test_size_is_checked_before_decoding_and_without_a_warning(monkeypatch):
    bomb = _file(Image.new("1", (14000, 14000)), "PNG")
    assert len(bomb) < 30_000
    monkeypatch.setattr(record, "_pixels", lambda *_: pytest.fail("decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadRecord, match="50 megapixels"):
            decode_image(bomb, 3)


def test_captions_are_cleaned():
    raw = [b"\xef\xbb\xbf a cat\r\n", "a\0 dog ", b" \n", b"caf\xff", None, 7, ""]
    assert clean_texts(raw) == ("a cat", "a dog", "caf\ufffd")


def test_checked_refuses_what_is_missing():
    with pytest.raises(BadRecord, match="image missing"):
        record.checked("k", b"", ("a",), {})
    with pytest.raises(BadRecord, match="caption missing"):
        record.checked("k", b"x", (), {})
    assert record.checked("k", b"x", ("a",), {"l": 1}).fields == {"l": 1}


def test_scalars_and_digest():
    values = {"a": 1, "b": "x", "c": True, "d": 1.5, "e": None, "f": [1], "g": "y"}
    assert scalars(values, without="g") == {"a": 1, "b": "x", "c": 1}
    assert digest("a", [1, "b"]) == digest("a", [1, "b"]) != digest("a", [1, "c"])
