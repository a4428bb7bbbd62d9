"""Settings of the preprocessing: aspect modes, views and limits."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from serving.contract import Status
from trainer.preprocessing import STATUSES, Aspect, Augmentation, Preprocessing, decode_photos, random_views

pytestmark = pytest.mark.tf

Pixels = NDArray[np.uint8]


@functools.cache
def traced_decoder(settings: Preprocessing, inputs: int) -> Any:
    """Return decode_photos with or without views, traced once per settings."""
    import tensorflow as tf

    specs = [tf.TensorSpec([None], tf.string), tf.TensorSpec([None, 5])][:inputs]
    return tf.function(
        lambda photos, views=None: decode_photos(photos, settings, views=views),
        input_signature=specs,
        autograph=False,
    )


def run(
    contents: Sequence[bytes], settings: Preprocessing, views: Any = None
) -> tuple[Pixels, list[Status], list[tuple[int, int]]]:
    """Return pixels, statuses, and (height, width) of each photo."""
    import tensorflow as tf

    inputs = [tf.constant(list(contents), tf.string), *([] if views is None else [tf.constant(views)])]
    pixels, status, heights, widths = traced_decoder(settings, len(inputs))(*inputs)
    sides = list(zip(heights.numpy().tolist(), widths.numpy().tolist(), strict=True))
    return pixels.numpy(), [STATUSES[index] for index in status.numpy()], sides


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def thirds(width: int = 300, height: int = 100) -> Image.Image:
    """Return an image with red, green and blue thirds from left to right."""
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 255, 0), (width // 3, 0, 2 * width // 3, height))
    image.paste((0, 0, 255), (2 * width // 3, 0, width, height))
    return image


def names(row: NDArray[np.uint8]) -> str:
    """Return the colours of a row of pixels in order, without repetition: r, g, b, or - for grey."""
    found = ["rgb"[pixel.argmax()] if pixel.max() > 200 else "-" for pixel in row]
    return "".join(name for at, name in enumerate(found) if at == 0 or found[at - 1] != name)


@pytest.mark.parametrize(
    ("aspect", "across", "down"), [("stretch", "rgb", "g"), ("crop", "g", "g"), ("pad", "rgb", "-g-")]
)
def test_the_aspect_mode_determines_the_visible_part_of_a_wide_photo(
    aspect: str, across: str, down: str
) -> None:
    settings = Preprocessing(height=90, width=90, aspect=Aspect(aspect))
    [pixels], [status], [sides] = run([encoded(thirds())], settings)
    assert (status, sides) == (Status.OK, (100, 300))
    assert names(pixels[45]) == across
    assert names(pixels[:, 45]) == down


@pytest.mark.parametrize("aspect", Aspect)
@pytest.mark.parametrize("size", [(64, 64), (48, 80)], ids=str)
def test_every_aspect_mode_applies_the_orientation_after_the_resize(
    aspect: Aspect, size: tuple[int, int]
) -> None:
    settings = Preprocessing(height=size[0], width=size[1], aspect=aspect)
    upright = thirds()
    about = Image.Exif()
    about[0x0112] = 6  # stored a quarter turn to the left of what is meant
    turned = encoded(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=about)
    (plain, found), statuses, sides = run([encoded(upright), turned], settings)
    assert statuses == [Status.OK, Status.OK]
    assert sides == [(100, 300), (100, 300)]
    # Padding and crops of an odd number of pixels are asymmetric.
    assert np.abs(plain.astype(int) - found).mean() < 3


@pytest.mark.parametrize("aspect", Aspect)
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 700)], ids=str)
def test_every_aspect_mode_accepts_extreme_aspect_ratios(aspect: Aspect, size: tuple[int, int]) -> None:
    settings = Preprocessing(height=40, width=60, aspect=aspect)
    (photo, blank), statuses, _ = run([encoded(Image.new("RGB", size, (255, 0, 0)), "JPEG"), b""], settings)
    assert statuses == [Status.OK, Status.EMPTY]
    assert (photo[:, :, 0] > 200).any()
    assert (photo[:, :, 2] <= 128).all()
    assert (blank == 128).all()


def test_aspect_crop_takes_the_centre_at_full_detail() -> None:
    photo = thirds(1200, 400)
    settings = Preprocessing(height=100, width=100, aspect=Aspect.CROP)
    [pixels], _, _ = run([encoded(photo, "JPEG", quality=95)], settings)
    middle = photo.crop((400, 0, 800, 400)).resize((100, 100), Image.Resampling.BICUBIC)
    assert np.abs(pixels.astype(int) - np.asarray(middle)).mean() < 4


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(1, 1), (37, 500), (300, 172), (448, 336), (2000, 31), (16400, 5)], ids=str)
def test_the_resize_is_bit_identical_to_one_antialiased_bicubic_op(
    size: tuple[int, int], orientation: int
) -> None:
    # The preprocessing resizes rows and columns in separate passes. The embeddings of a store stay valid
    # only if that changes no pixel.
    import tensorflow as tf

    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = Preprocessing(height=64, width=48)
    [found], _, _ = run([encoded(Image.fromarray(noise), exif=exif)], settings)
    target = [64, 48] if orientation == 1 else [48, 64]
    wide = size[0] > 1 << 14  # the columns of such a photo are resized before its rows
    resized = tf.image.resize(
        noise.swapaxes(0, 1) if wide else noise, target[::-1] if wide else target, "bicubic", antialias=True
    ).numpy()
    wanted = np.clip(np.round(resized.swapaxes(0, 1) if wide else resized), 0, 255)
    np.testing.assert_array_equal(found, wanted if orientation == 1 else np.rot90(wanted, -1))


# --- Views --------------------------------------------------------------------------------------------


def views(augmentation: Augmentation, count: int = 64) -> NDArray[np.float32]:
    import tensorflow as tf

    seeds = tf.stack([tf.range(count), tf.ones([count], tf.int32)], 1)
    return random_views(seeds, augmentation).numpy()


def test_a_view_without_augmentation_equals_the_photo() -> None:
    contents = [encoded(thirds()), encoded(thirds(), "JPEG"), b"text"]
    settings = Preprocessing(height=64, width=64)
    plain, statuses, _ = run(contents, settings)
    viewed, viewed_statuses, _ = run(contents, settings, views(Augmentation(), 3))
    np.testing.assert_array_equal(plain, viewed)
    assert statuses == viewed_statuses


def test_views_cover_the_range_of_their_settings() -> None:
    drawn = views(Augmentation(flip_left_right=True, random_crop=10, random_scale=20, random_brightness=30))
    size, down, right, mirrored, brightness = drawn.T
    assert (size >= 1 / (1.1 * 1.2) - 1e-6).all()
    assert (size <= 1 / 1.1 + 1e-6).all()
    assert size.std() > 0.02
    for place in (down, right):
        assert ((place >= 0) & (place <= 1)).all()
        assert place.std() > 0.2
    assert set(mirrored) == {0.0, 1.0}
    assert 0.3 < mirrored.mean() < 0.7
    assert (abs(brightness - 1) <= 0.3 + 1e-6).all()
    assert brightness.std() > 0.1


def test_views_are_reproducible_by_seed() -> None:
    augmentation = Augmentation(True, 10, 10, 10)
    np.testing.assert_array_equal(views(augmentation), views(augmentation))


def test_a_view_crops_mirrors_and_adjusts_brightness() -> None:
    settings = Preprocessing(height=60, width=60)
    photo = encoded(thirds())
    whole, left = [1, 0, 0, 0, 1], [1 / 3, 0, 0, 0, 1]
    mirrored, dark = [1, 0, 0, 1, 1], [1, 0, 0, 0, 0.5]
    drawn = np.array([whole, left, mirrored, dark, dark], np.float32)
    pixels, _, _ = run([photo] * 4 + [b""], settings, drawn)
    assert [names(found[30]) for found in pixels[:3]] == ["rgb", "r", "bgr"]
    np.testing.assert_allclose(pixels[3], pixels[0] * 0.5, atol=1)
    assert (pixels[4] == 128).all()


def test_a_view_of_a_large_jpeg_keeps_the_detail_of_its_crop() -> None:
    photo = thirds(1800, 600)
    settings = Preprocessing(height=100, width=100)
    # A twelfth of each side is smaller than the target, so the photo must not be decoded at a reduced scale.
    drawn = np.array([[1 / 12, 0.5, 4 * 150 / 1650, 0, 1]], np.float32)
    [pixels], _, _ = run([encoded(photo, "JPEG", quality=95)], settings, drawn)
    part = photo.crop((600, 275, 750, 325)).resize((100, 100), Image.Resampling.BICUBIC)
    assert np.abs(pixels.astype(int) - np.asarray(part)).mean() < 4


# --- Limits -------------------------------------------------------------------------------------------


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


LIMITED = Preprocessing(height=32, width=32, max_pixels=2000, max_whole_pixels=1000, max_gif_pixels=500)


@pytest.mark.parametrize(
    ("limit", "kind", "options"),
    [
        (2000, "JPEG", {}),
        (1000, "JPEG", {"progressive": True}),
        (1000, "PNG", {}),
        (1000, "BMP", {}),
        (1000, "WEBP", {}),
        (500, "GIF", {}),
    ],
)
def test_pixel_limits_apply_to_their_formats(limit: int, kind: str, options: dict[str, Any]) -> None:
    width, height = 50, limit // 50
    photos = []
    for rows in (height, height + 1):
        image = noise(width, rows)
        photos.append(encoded(image.quantize(8) if kind == "GIF" else image, kind, **options))
    _, statuses, sides = run(photos, LIMITED)
    assert statuses == [Status.OK, Status.TOO_LARGE]
    assert sides == [(height, width), (0, 0)]


def test_scan_and_byte_limits_are_configurable() -> None:
    progressive = encoded(noise(50, 40), "JPEG", progressive=True)
    larger = encoded(noise(50, 41), "JPEG", progressive=True)
    settings = Preprocessing(height=32, width=32, max_scan_pixels=2000 * 10, max_bytes=len(larger))
    too_long = progressive + bytes(len(larger) - len(progressive) + 1)
    assert run([progressive, larger, too_long], settings)[1] == [
        Status.OK,
        Status.TOO_LARGE,
        Status.TOO_LARGE,
    ]


def test_a_gif_may_be_of_any_length_after_its_first_frame() -> None:
    first = noise(50, 40).quantize(64)
    others = [first.rotate(turn) for turn in range(5, 90, 2)]
    single = encoded(first, "GIF")
    film = encoded(first, "GIF", save_all=True, append_images=others)
    assert len(film) > 10 * len(single)
    settings = Preprocessing(height=32, width=32, max_gif_bytes=len(single) + 40)
    pixels, statuses, _ = run([film, single], settings)
    assert statuses == [Status.OK, Status.OK]
    np.testing.assert_array_equal(pixels[0], pixels[1])
    settings = Preprocessing(height=32, width=32, max_gif_bytes=len(single) // 2)
    assert run([film], settings)[1] == [Status.TOO_LARGE]


def test_photos_above_max_parallel_bytes_decode_to_the_same_pixels() -> None:
    large = [encoded(noise(90, 70), kind) for kind in ("JPEG", "PNG", "BMP", "WEBP")]
    cut = large[0][: len(large[0]) // 2]
    contents = [large[0], b"text", cut, *large[1:], encoded(noise(9, 7)), large[1][:-20]]
    together = run(contents, Preprocessing(height=32, width=32))
    apart = run(contents, Preprocessing(height=32, width=32, max_parallel_bytes=10_000))
    np.testing.assert_array_equal(together[0], apart[0])
    assert together[1:] == apart[1:]
    assert together[1] == [
        Status.OK,
        Status.NOT_AN_IMAGE,
        Status.TRUNCATED,
        *[Status.OK] * 4,
        Status.CORRUPT,
    ]


def test_one_pixel_limit_can_be_set_for_all_formats() -> None:
    small = Preprocessing.with_limits("crop", 1000, 5000)
    assert (small.max_pixels, small.max_whole_pixels, small.max_gif_pixels) == (1000, 1000, 1000)
    assert (small.aspect, small.max_bytes) == (Aspect.CROP, 5000)
    default = Preprocessing()
    assert Preprocessing.with_limits("stretch", default.max_pixels, default.max_bytes) == default


def test_the_settings_are_json_values_for_the_bundle_metadata() -> None:
    import json

    settings = Preprocessing(aspect=Aspect.PAD).to_dict()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["aspect"] == "pad"
