"""THE preprocessing: photo bytes in, upright pixels and a status out, as TensorFlow ops.

The only module of hubhead that decodes or resizes. It travels inside the SavedModel, so
training, batch, the local server and stock TensorFlow Serving see the same pixels.

A photo never fails the call, nor its neighbours. Two guards see to that:

* Before anything is decoded, the header is held against the limits: a decompression bomb
  costs its time and memory before it fails, so no catch helps against it.
* The rest is caught: the photos run through a tf.data pipeline inside the graph with
  `ignore_errors`, each with its row number, and are scattered back into a blank batch. A
  row that is missing did not decode. This holds in the classic session that TensorFlow
  Serving runs, where one failing op fails every caller of a merged batch.

Ops and attributes that are never used here, each seen to hang or crash the process in
TensorFlow 2.21: `try_recover_truncated=True`, `decode_image(channels=0)`, a `ratio` above 1
before the dimensions were checked, `decode_jpeg` on bytes that do not begin as a JPEG.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from serving.contract import Status

VERSION = 1
"""Part of the embedding store's key: raise it with every change that alters pixels."""

STATUSES = (
    Status.OK,
    Status.TRUNCATED,
    Status.EMPTY,
    Status.NOT_AN_IMAGE,
    Status.UNSUPPORTED_FORMAT,
    Status.TOO_LARGE,
    Status.CORRUPT,
)
"""The statuses the graph gives; a status travels through it as its index here."""

_OK, _TRUNCATED, _EMPTY, _NOT_AN_IMAGE, _UNSUPPORTED, _TOO_LARGE, _CORRUPT = range(len(STATUSES))

_HEADER_BYTES = 40
_EXIF_SEARCH_BYTES = 1 << 18
"""Exif stands in one of the first segments, each at most 64 KiB long (JPEG, ITU-T T.81 B.1.1.4)."""

_END_OF_IMAGE = b"\xff\xd9"
_START_OF_SCAN = b"\xff\xda"


@dataclass(frozen=True)
class Preprocessing:
    """The settings of the graph: they are part of the bundle and of the fingerprint.

    Attributes:
        height, width: of the pixels that the backbone takes.
        max_pixels: a JPEG with more, by its header, is refused before it is decoded.
        max_whole_pixels: the same for PNG, BMP and WebP, which cannot be decoded at a reduced scale.
        max_scan_pixels: for progressive JPEGs: pixels times scans, which is what decoding costs.
        max_gif_pixels: the same for a frame of a GIF.
        max_gif_bytes: how much of a GIF is looked at; its first frame stands at the beginning.
        max_bytes: a longer file is refused.
    """

    height: int = 224
    width: int = 224
    max_pixels: int = 120_000_000
    max_whole_pixels: int = 50_000_000
    max_scan_pixels: int = 600_000_000
    max_gif_pixels: int = 16_000_000
    max_gif_bytes: int = 1 << 20
    max_bytes: int = 64 << 20

    def settings(self) -> dict[str, Any]:
        """For hubhead.json and the fingerprint."""
        return {"version": VERSION, "aspect": "stretch", **asdict(self)}


def decode_photos(contents: Any, settings: Preprocessing, *, parallel: int = 8) -> tuple[Any, Any, Any, Any]:
    """Decode a batch of encoded photos, whatever their bytes are.

    Args:
        contents: string [N], N may be 0.
        settings: sizes and limits.
        parallel: how many photos of one call are decoded at once, at most.

    Returns:
        pixels: uint8 [N,height,width,3], upright; mid-grey for refused photos.
        status: int32 [N], indices into STATUSES.
        heights, widths: int32 [N] of the upright photo as its header says; 0 for refused photos.
    """
    import tensorflow as tf

    count = tf.shape(contents)[0]
    decode = tf.function(
        lambda photo, mend: _decode_photo(photo, settings, mend),
        input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.bool)],
        autograph=False,
    )

    def run(rows: Any, photos: Any, mend: bool) -> Any:
        return _decode_rows(decode, rows, photos, count, settings, parallel, mend)

    strict = run(tf.range(count), contents, False)
    failed = tf.reshape(tf.where(tf.equal(strict[1], _CORRUPT)), [-1])

    def mended() -> Any:
        second = run(tf.cast(failed, tf.int32), tf.gather(contents, failed), True)
        better = tf.equal(second[1], _TRUNCATED)
        return tuple(
            tf.where(tf.reshape(better, [-1] + [1] * (old.shape.rank - 1)), new, old)
            for new, old in zip(second, strict, strict=True)
        )

    pixels, status, heights, widths = tf.cond(tf.size(failed) > 0, mended, lambda: strict)
    pixels.set_shape([None, settings.height, settings.width, 3])
    return pixels, status, heights, widths


def status_names(status: Any) -> Any:
    """Status indices int32 [N] as strings [N]."""
    import tensorflow as tf

    return tf.gather(tf.constant([str(name) for name in STATUSES]), status)


def usable(status: Any) -> Any:
    """bool [N]: whether a photo was decoded, whole or in part."""
    import tensorflow as tf

    return status <= tf.constant(_TRUNCATED)


def _decode_rows(
    decode: Callable[[Any, Any], tuple[Any, Any, Any, Any]],
    rows: Any,
    contents: Any,
    count: Any,
    settings: Preprocessing,
    parallel: int,
    mend: bool,
) -> tuple[Any, Any, Any, Any]:
    """Decode `contents` and scatter them to `rows` of a blank batch of `count` photos."""
    import tensorflow as tf

    # One row more than asked, an empty photo, so that the dataset always has an element.
    dataset = tf.data.Dataset.from_tensor_slices(
        (tf.concat([rows, [count]], 0), tf.concat([contents, [b""]], 0))
    )
    dataset = dataset.map(
        tf.autograph.experimental.do_not_convert(lambda row, photo: (row, *decode(photo, tf.constant(mend)))),
        num_parallel_calls=tf.cast(tf.minimum(tf.size(rows) + 1, parallel), tf.int64),
        deterministic=False,
    )
    dataset = dataset.ignore_errors().batch(tf.int64.max)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    index, *values = dataset.with_options(options).get_single_element()
    shape = [settings.height, settings.width, 3]
    blanks = (
        tf.fill([count + 1, *shape], tf.constant(128, tf.uint8)),
        tf.fill([count + 1], _CORRUPT),
        tf.zeros([count + 1], tf.int32),
        tf.zeros([count + 1], tf.int32),
    )
    index = index[:, None]
    return tuple(
        tf.tensor_scatter_nd_update(blank, index, value)[:count]
        for blank, value in zip(blanks, values, strict=True)
    )


def _decode_photo(contents: Any, settings: Preprocessing, mend: Any) -> tuple[Any, Any, Any, Any]:
    """One photo: pixels uint8 [height,width,3], status, height, width. Fails where it does not decode.

    With `mend` (bool) the end that a JPEG lacks is put behind it, and the rest of the photo stays grey.
    """
    import tensorflow as tf

    length = tf.strings.length(contents)
    head = _header(contents)
    kind = tf.where(_begins(head, b"\xff\xd8\xff"), 0, 1)
    kind = tf.where(length > settings.max_bytes, 2, kind)
    kind = tf.where(tf.equal(length, 0), 3, kind)
    blank = tf.fill([settings.height, settings.width, 3], tf.constant(128, tf.uint8))

    def refused(status: int) -> Callable[[], tuple[Any, Any, Any, Any]]:
        return lambda: (blank, tf.constant(status), tf.constant(0), tf.constant(0))

    return tf.switch_case(
        kind,
        [
            lambda: _jpeg(contents, settings, mend),
            lambda: _other(contents, head, settings),
            refused(_TOO_LARGE),
            refused(_EMPTY),
        ],
    )


def _dot() -> Any:
    """What a refused photo decodes to: one grey pixel, which the resize spreads over the blank."""
    import tensorflow as tf

    return tf.fill([1, 1, 3], tf.constant(128, tf.uint8))


def _claimed(height: Any, width: Any) -> Any:
    """Pixels by the header, int64."""
    import tensorflow as tf

    return tf.cast(height, tf.int64) * tf.cast(width, tf.int64)


def _fit(pixels: Any, settings: Preprocessing, sideways: Any = None) -> Any:
    """Resize to the backbone's size with antialiasing, as uint8; to its transpose where `sideways`."""
    import tensorflow as tf

    pixels.set_shape([None, None, 3])
    size: Any = [settings.height, settings.width]
    if sideways is not None and settings.height != settings.width:
        size = tf.where(sideways, size[::-1], size)
    resized = tf.image.resize(pixels, size, antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0.0, 255.0), tf.uint8)


# --- JPEG ---------------------------------------------------------------------------------------


def _jpeg(contents: Any, settings: Preprocessing, mend: Any) -> tuple[Any, Any, Any, Any]:
    import tensorflow as tf

    shape = tf.image.extract_jpeg_shape(contents)
    height, width = shape[0], shape[1]
    claimed = _claimed(height, width)
    # Scan markers are counted without walking the segments, which is cheap and can only
    # overcount (a preview inside Exif, a film appended by the phone); the walk settles it.
    scans = tf.size(tf.strings.split(contents, _START_OF_SCAN), out_type=tf.int64) - 1
    costly = (scans > 4) & (claimed * scans > settings.max_scan_pixels)
    too_large = (claimed > settings.max_pixels) | tf.cond(
        costly, lambda: _is_progressive(contents), lambda: tf.constant(False)
    )
    orientation = _orientation(contents)
    sideways = orientation >= 5
    source = tf.strings.join([contents, tf.where(mend, _END_OF_IMAGE, b"")])
    # The largest reduction in the DCT that leaves both sides at least as large as they must be.
    room = tf.minimum(height, width) // max(settings.height, settings.width)
    scale = tf.where(room >= 8, 3, tf.where(room >= 4, 2, tf.where(room >= 2, 1, 0)))

    def at(ratio: int) -> Callable[[], Any]:
        return lambda: tf.io.decode_jpeg(source, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")

    pixels = tf.switch_case(tf.where(too_large, 4, scale), [at(1), at(2), at(4), at(8), _dot])
    upright = _turn(_fit(pixels, settings, sideways), orientation)
    upright = tf.ensure_shape(upright, [settings.height, settings.width, 3])
    sides = tf.where(sideways, shape[1::-1], shape[:2])
    sides = tf.where(too_large, 0, sides)
    status = tf.where(too_large, _TOO_LARGE, tf.where(mend, _TRUNCATED, _OK))
    return upright, status, sides[0], sides[1]


def _is_progressive(contents: Any) -> Any:
    """Whether the frame header, found by a walk over the segments, is SOF2 (ITU-T T.81, table B.1)."""
    import tensorflow as tf

    length = tf.strings.length(contents)
    frames = [code for code in range(0xC0, 0xD0) if code not in (0xC4, 0xC8, 0xCC)]

    def marker_at(position: Any) -> Any:
        return tf.cast(tf.io.decode_raw(tf.strings.substr(contents, position, 4), tf.uint8), tf.int32)

    def searching(position: Any, code: Any, steps: Any) -> Any:
        del code
        return (position + 4 <= length) & (steps < 1000)

    def step(position: Any, code: Any, steps: Any) -> Any:
        del code
        marker = marker_at(position)
        code = marker[1]
        found = tf.reduce_any(tf.equal(code, frames))
        after = position + 2 + tf.maximum(marker[2] * 256 + marker[3], 2)
        after = tf.where(tf.not_equal(marker[0], 0xFF) | tf.equal(code, 0xFF), position + 1, after)
        return tf.where(found, length, after), tf.where(found, code, 0), steps + 1

    _, code, _ = tf.while_loop(searching, step, (tf.constant(2), tf.constant(0), tf.constant(0)))
    return tf.equal(code, 0xC2)


def _orientation(contents: Any) -> Any:
    """The Exif orientation of a JPEG, 1 to 8; 1 where it is missing or makes no sense.

    Exif 2.32, 4.5.4 (APP1 begins with "Exif" and two zeros, then a TIFF header) and 4.6.4 (tag 0x0112).
    """
    import tensorflow as tf

    parts = tf.strings.split(tf.strings.substr(contents, 0, _EXIF_SEARCH_BYTES), b"Exif\0\0", maxsplit=1)

    def parse() -> Any:
        before, tiff = parts[0], parts[1]
        marker = tf.strings.substr(before, -4, 2)
        little = tf.equal(tf.strings.substr(tiff, 0, 2), b"II")
        big = tf.equal(tf.strings.substr(tiff, 0, 2), b"MM")

        def number(at: Any, size: int) -> Any:
            """Unsigned number of `size` bytes; 0 beyond the end."""
            at = tf.clip_by_value(at, 0, tf.strings.length(tiff))
            raw = tf.io.decode_raw(
                tf.strings.join([tf.strings.substr(tiff, at, size), b"\0" * size]), tf.uint8
            )[:size]
            raw = tf.where(little, tf.reverse(raw, [0]), raw)
            weights = [256**power for power in reversed(range(size))]
            return tf.reduce_sum(tf.cast(raw, tf.int64) * tf.constant(weights, tf.int64))

        directory = tf.cast(tf.minimum(number(tf.constant(4), 4), 1 << 20), tf.int32)
        entries = tf.cast(tf.minimum(number(directory, 2), 512), tf.int32)
        start = tf.minimum(directory + 2, tf.strings.length(tiff))
        raw = tf.io.decode_raw(tf.strings.substr(tiff, start, 12 * entries), tf.uint8)
        table = tf.cast(tf.reshape(raw[: tf.size(raw) // 12 * 12], [-1, 12]), tf.int32)

        def short(at: int) -> Any:
            first, second = table[:, at], table[:, at + 1]
            return tf.where(little, first + 256 * second, 256 * first + second)

        values = tf.boolean_mask(short(8), tf.equal(short(0), 0x0112) & tf.equal(short(2), 3))
        value = tf.concat([values, [1]], 0)[0]
        sound = tf.equal(marker, b"\xff\xe1") & (little | big) & (value >= 1) & (value <= 8)
        return tf.where(sound, value, 1)

    found = tf.equal(tf.size(parts), 2)
    enough = tf.cond(
        found,
        lambda: (tf.strings.length(parts[0]) >= 4) & (tf.strings.length(parts[1]) >= 14),
        lambda: tf.constant(False),
    )
    return tf.cond(enough, parse, lambda: tf.constant(1))


def _turn(pixels: Any, orientation: Any) -> Any:
    """Undo an Exif orientation. Photos are turned after the resize, when they are small."""
    import tensorflow as tf

    def among(*orientations: int) -> Any:
        return tf.reduce_any(tf.equal(orientation, orientations))

    transposed = tf.transpose(pixels, tf.where(among(5, 6, 7, 8), [1, 0, 2], [0, 1, 2]))
    axes = tf.boolean_mask([0, 1], [among(3, 4, 7, 8), among(2, 3, 6, 7)])
    return tf.reverse(transposed, axes)


# --- Other formats, whose dimensions stand at fixed places of the header ------------------------


def _header(contents: Any) -> Any:
    """The first bytes as int32 [_HEADER_BYTES], zeros beyond the end."""
    import tensorflow as tf

    padded = tf.strings.join([tf.strings.substr(contents, 0, _HEADER_BYTES), b"\0" * _HEADER_BYTES])
    return tf.cast(tf.io.decode_raw(padded, tf.uint8)[:_HEADER_BYTES], tf.int32)


def _begins(head: Any, signature: bytes, at: int = 0) -> Any:
    import tensorflow as tf

    return tf.reduce_all(tf.equal(head[at : at + len(signature)], list(signature)))


def _number(head: Any, places: Sequence[int]) -> Any:
    """An unsigned number from bytes at `places`, least significant first; int64."""
    import tensorflow as tf

    chosen = tf.cast(tf.gather(head, list(places)), tf.int64)
    return tf.reduce_sum(chosen * tf.constant([256**power for power in range(len(places))], tf.int64))


def _known_but_not_decoded(head: Any) -> Any:
    """TIFF, HEIC and AVIF (ISO media), Photoshop, JPEG 2000, JPEG XL."""
    import tensorflow as tf

    return tf.reduce_any(
        [
            _begins(head, b"II*\0"),
            _begins(head, b"MM\0*"),
            _begins(head, b"ftyp", at=4),
            _begins(head, b"8BPS"),
            _begins(head, b"\0\0\0\x0cjP  "),
            _begins(head, b"\0\0\0\x0cJXL "),
            _begins(head, b"\xff\x0a"),
        ]
    )


@dataclass(frozen=True)
class _Format:
    """What the header of one format says, as scalars.

    Attributes:
        fits: bool, the bytes begin as this format does.
        height, width: int64.
        limit: pixels allowed.
        decoder: index of the decoder in `_other`.
        supported: bool, this kind of file is decoded.
    """

    fits: Any
    height: Any
    width: Any
    limit: int
    decoder: Any
    supported: Any = True


_REFUSE, _PNG, _RGB, _RGBA = range(4)


def _other(contents: Any, head: Any, settings: Preprocessing) -> tuple[Any, Any, Any, Any]:
    import tensorflow as tf

    formats = [_png(head, settings), _gif(head, settings), _bmp(head, settings), _webp(head, settings)]
    status = tf.where(_known_but_not_decoded(head), _UNSUPPORTED, _NOT_AN_IMAGE)
    decoder, height, width = tf.constant(_REFUSE), tf.constant(0, tf.int64), tf.constant(0, tf.int64)
    for found in formats:
        claimed = found.height * found.width
        judged = tf.where(claimed > found.limit, _TOO_LARGE, tf.where(claimed <= 0, _CORRUPT, _OK))
        judged = tf.where(found.supported, judged, _UNSUPPORTED)
        status = tf.where(found.fits, judged, status)
        decoder = tf.where(found.fits, found.decoder, decoder)
        height, width = tf.where(found.fits, found.height, height), tf.where(found.fits, found.width, width)
    good = tf.equal(status, _OK)
    # The GIF decoder unpacks every frame it is given before it returns the first, so it gets few.
    source = tf.where(formats[1].fits, tf.strings.substr(contents, 0, settings.max_gif_bytes), contents)

    def image(channels: int) -> Any:
        # WebP wants exactly the channels that the file has.
        return tf.io.decode_image(source, channels=channels, expand_animations=False)

    pixels = tf.switch_case(
        tf.where(good, decoder, _REFUSE),
        [
            _dot,
            lambda: _on_white(tf.io.decode_png(source, channels=4)),
            lambda: image(3),
            lambda: _on_white(image(4)),
        ],
    )
    sides = tf.cast(tf.where(good, tf.stack([height, width]), 0), tf.int32)
    return _fit(pixels, settings), status, sides[0], sides[1]


def _on_white(pixels: Any) -> Any:
    """uint8 [h,w,4] composed on white: uint8 [h,w,3]."""
    import tensorflow as tf

    def composed() -> Any:
        alpha = tf.cast(pixels[:, :, 3:], tf.float32) / 255.0
        colour = tf.cast(pixels[:, :, :3], tf.float32)
        return tf.cast(tf.round(colour * alpha + 255.0 * (1.0 - alpha)), tf.uint8)

    opaque = tf.reduce_all(tf.equal(pixels[:, :, 3], 255))
    return tf.cond(opaque, lambda: pixels[:, :, :3], composed)


def _png(head: Any, settings: Preprocessing) -> _Format:
    """ISO/IEC 15948, 11.2.2: IHDR comes first, width and height big-endian at 16 and 20.

    Grey of fewer than 8 bits has no alpha, and asked for one the decoder gives a wrong one.
    """
    import tensorflow as tf

    few_greys = (head[24] < 8) & tf.equal(head[25], 0)
    return _Format(
        fits=_begins(head, b"\x89PNG\r\n\x1a\n"),
        height=_number(head, (23, 22, 21, 20)),
        width=_number(head, (19, 18, 17, 16)),
        limit=settings.max_whole_pixels,
        decoder=tf.where(few_greys, _RGB, _PNG),
    )


def _gif(head: Any, settings: Preprocessing) -> _Format:
    """GIF89a, 18: the logical screen, little-endian at 6 and 8. The first frame is taken."""
    return _Format(
        fits=_begins(head, b"GIF8"),
        height=_number(head, (8, 9)),
        width=_number(head, (6, 7)),
        limit=settings.max_gif_pixels,
        decoder=_RGB,
    )


def _bmp(head: Any, settings: Preprocessing) -> _Format:
    """BITMAPINFOHEADER: width at 18, height at 22 (negative: top down), bits at 28, compression at 30.

    Other than uncompressed 24 and 32 bit, the decoder refuses or gives wrong colours.
    """
    import tensorflow as tf

    height, bits = _number(head, (22, 23, 24, 25)), _number(head, (28, 29))
    return _Format(
        fits=_begins(head, b"BM"),
        height=tf.where(height >= 2**31, 2**32 - height, height),
        width=_number(head, (18, 19, 20, 21)),
        limit=settings.max_whole_pixels,
        decoder=_RGB,
        supported=(tf.equal(bits, 24) | tf.equal(bits, 32)) & tf.equal(_number(head, (30, 31, 32, 33)), 0),
    )


def _webp(head: Any, settings: Preprocessing) -> _Format:
    """RFC 9649: a canvas (VP8X), lossless (VP8L) or lossy (VP8) header at 12; animations are refused."""
    import tensorflow as tf

    extended, lossless = tf.equal(head[15], ord("X")), tf.equal(head[15], ord("L"))

    def chosen(of_extended: Any, of_lossless: Any, of_lossy: Any) -> Any:
        return tf.where(extended, of_extended, tf.where(lossless, of_lossless, of_lossy))

    flags = chosen(head[20], head[24], 0)
    return _Format(
        fits=_begins(head, b"RIFF") & _begins(head, b"WEBP", at=8),
        height=chosen(
            1 + _number(head, (27, 28, 29)),
            1 + _number(head, (22, 23, 24)) // 2**6 % 2**14,
            _number(head, (28, 29)) % 2**14,
        ),
        width=chosen(
            1 + _number(head, (24, 25, 26)),
            1 + _number(head, (21, 22)) % 2**14,
            _number(head, (26, 27)) % 2**14,
        ),
        limit=settings.max_whole_pixels,
        decoder=tf.where(tf.bitwise.bitwise_and(flags, 16) > 0, _RGBA, _RGB),
        supported=tf.logical_not(extended & (tf.bitwise.bitwise_and(flags, 2) > 0)),
    )
