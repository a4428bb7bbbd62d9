"""JPEG (ITU-T T.81): decoding at a reduced scale, EXIF orientation, and the scan guard.

The scan guard protects from decompression bombs with many scans. A progressive JPEG is decoded in
full once per scan, so a small file with thousands of scans of a large image would take minutes.
The guard counts the scans before anything is decoded: first with a cheap upper bound (every
start-of-scan marker anywhere in the bytes), and only if that exceeds the limits with an exact walk
over the segments.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from trainer.preprocessing import exif, headers, limits, resize
from trainer.preprocessing.limits import HeaderInfo
from trainer.preprocessing.settings import OK, TOO_LARGE, TRUNCATED, UNSUPPORTED, Preprocessing

SIGNATURE = b"\xff\xd8\xff"

_START_OF_SCAN, _END_OF_IMAGE, _APP1 = 0xDA, 0xD9, 0xE1
_SOF_BASELINE, _SOF_EXTENDED, _SOF_PROGRESSIVE = 0xC0, 0xC1, 0xC2
_FRAMES = [code for code in range(0xC0, 0xD0) if code not in (0xC4, 0xC8, 0xCC)]
"""Markers of a frame header, SOF0 to SOF15 (table B.1)."""

_SMALL_BYTES = 1 << 18
"""File size up to which a search in all bytes is faster than a walk over the segments."""

_SUPPORTED_FRAMES = [_SOF_BASELINE, _SOF_EXTENDED, _SOF_PROGRESSIVE, 0xC9]
"""Frame types that the decoder supports, the last one with arithmetic coding; not lossless, hierarchical."""

_MOST_MARKERS = 4096
"""Maximum of markers that the scan guard visits."""

_WINDOW_BYTES = 1 << 16
"""Bytes that are searched for a marker at a time."""

_BYTES_PER_PIXEL = 6
"""Three components with coefficients of 16 bits, held for all pixels if there are several scans."""


def read_header(contents: Any, settings: Preprocessing, repair: Any, view: Any) -> HeaderInfo:
    """Read the header; for a repair the missing end is added, so that the rest stays grey.

    Args:
        contents: encoded bytes, string scalar.
        settings: sizes and limits.
        repair: bool, true if the photo failed to decode unmodified and may be truncated; None for the
            first attempt, which leaves photos that may be too large to the next attempt.
        view: float32 [5], view that is cropped afterwards; None for the whole photo.
    """
    import tensorflow as tf

    source = contents
    if repair is None:
        sides = _read_sides(contents)
        status = tf.where(_may_be_too_large(contents, sides, settings), limits.UNUSUAL, OK)
    else:
        # A failed photo may be one that the decoder does not support: report that rather than repair it.
        why = tf.cond(repair, lambda: _explain_failure(contents, settings), lambda: tf.constant(OK))
        sides = tf.cond(tf.equal(why, OK), lambda: _read_sides(contents), lambda: tf.ones([2], tf.int64))
        status = tf.where(repair, TRUNCATED, OK)
        status = tf.where(_is_too_large(contents, sides, settings), TOO_LARGE, status)
        status = tf.where(tf.equal(why, OK), status, why)
        source = tf.strings.join([contents, tf.where(repair, bytes([0xFF, _END_OF_IMAGE]), b"")])
    orientation = _read_orientation(contents)
    # The decoder can scale by 1/2, 1/4 and 1/8 in the DCT domain, which is much faster. Take the largest
    # reduction that leaves both sides at least as large as the backbone's input.
    factor = resize.downscale_factor(sides, settings, orientation >= 5) * (1.0 if view is None else view[0])
    scale = tf.where(factor >= 8, 3, tf.where(factor >= 4, 2, tf.where(factor >= 2, 1, 0)))
    decode = partial(tf.io.decode_jpeg, source, channels=3, dct_method="INTEGER_ACCURATE")
    decode_scaled = partial(tf.switch_case, scale, [partial(decode, ratio=ratio) for ratio in (1, 2, 4, 8)])
    return HeaderInfo(sides, settings.max_pixels, _BYTES_PER_PIXEL, decode_scaled, status, orientation)


def _read_sides(contents: Any) -> Any:
    """Return height and width by the header, int64 [2]; the op fails if the header cannot be parsed."""
    import tensorflow as tf

    return tf.cast(tf.ensure_shape(tf.image.extract_jpeg_shape(contents)[:2], [2]), tf.int64)


def _may_be_too_large(contents: Any, sides: Any, settings: Preprocessing) -> Any:
    """Return bool: true if decoding might take too much time or memory.

    Scan markers are counted anywhere in the bytes. That is cheap and never too low; it also counts
    the scans of an EXIF thumbnail or of a video that a phone appended.
    """
    import tensorflow as tf

    scans = tf.size(tf.strings.split(contents, bytes([0xFF, _START_OF_SCAN])), out_type=tf.int64) - 1
    return _costs_too_much(sides, scans, settings)


def _is_too_large(contents: Any, sides: Any, settings: Preprocessing) -> Any:
    """Return bool: true if decoding takes too much time or memory, by the exact number of scans."""
    import tensorflow as tf

    # The count may stop as soon as the scans exceed the limit for an image of this size.
    enough = settings.max_scan_pixels // tf.maximum(sides[0] * sides[1], 1)
    return tf.cond(
        _may_be_too_large(contents, sides, settings),
        lambda: _costs_too_much(sides, _count_scans(contents, enough), settings),
        lambda: tf.constant(False),
    )


def _costs_too_much(sides: Any, scans: Any, settings: Preprocessing) -> Any:
    """Return bool: true if pixels and scans exceed the limits.

    A JPEG with one scan is decoded row by row. One with several scans is held in memory as a whole and
    processed once per scan.
    """
    pixels = sides[0] * sides[1]
    whole = (pixels * scans > settings.max_scan_pixels) | (pixels > settings.max_whole_pixels)
    return (pixels > settings.max_pixels) | (scans > 1) & whole


def _count_scans(contents: Any, enough: Any) -> Any:
    """Return the number of scans that the decoder processes, int64; stop above `enough`.

    The decoder stops after the first scan of a sequential JPEG if that scan has all components,
    whatever follows. For all other JPEGs it continues to the end of the image. Segments are skipped
    by their length, so bytes inside of them (such as those of a thumbnail) are not taken for markers.
    """
    import tensorflow as tf

    length = tf.strings.length(contents)

    def body(position: Any, scans: Any, components: Any, steps: Any) -> Any:
        marker = _find_next_marker(contents, position)
        segment = headers.read_bytes(contents, marker, 10)
        code = segment[1]
        is_scan = tf.equal(code, _START_OF_SCAN)
        # Remember the number of components of a sequential frame. For a progressive one it is set to 0,
        # which no scan has, so that no scan counts as complete.
        sequential = tf.equal(code, _SOF_BASELINE) | tf.equal(code, _SOF_EXTENDED)
        components = tf.where(sequential, segment[9], components)
        components = tf.where(tf.equal(code, _SOF_PROGRESSIVE), 0, components)
        # A scan header (B.2.3) has its number of components at byte 4, a frame header (B.2.2) at byte 9.
        complete = is_scan & tf.equal(scans, 0) & tf.equal(segment[4], components)
        over = complete | tf.equal(code, _END_OF_IMAGE) | (marker >= length)
        # The length of a segment includes its own two bytes; a smaller value is invalid.
        following = marker + 2 + tf.maximum(segment[2] * 256 + segment[3], 2)
        scans += tf.cast(is_scan, tf.int64)
        return tf.where(over, length, following), scans, components, steps + 1

    _, scans, _, steps = tf.while_loop(
        lambda position, scans, _, steps: (position < length) & (scans <= enough) & (steps < _MOST_MARKERS),
        body,
        (tf.constant(2), tf.constant(0, tf.int64), tf.constant(0), tf.constant(0)),
    )
    # No real photo has that many segments. There may be more scans after them, so exceed the limit.
    return tf.where(steps >= _MOST_MARKERS, enough + 1 + tf.cast(steps, tf.int64), scans)


def _find_next_marker(contents: Any, start: Any) -> Any:
    """Return the position of the first marker from `start` on, or the length of the file.

    In the data of a scan a marker is FF followed by anything but 00 (a stuffed FF), FF (a fill byte)
    and D0 to D7 (a restart marker); 01 and D8 are skipped too, since they have no length (B.1.1.3).
    """
    import tensorflow as tf

    length = tf.strings.length(contents)

    def body(position: Any, found: Any) -> Any:
        raw = tf.io.decode_raw(tf.strings.substr(contents, position, _WINDOW_BYTES), tf.uint8)
        code = raw[1:]
        is_marker = tf.equal(raw[:-1], 0xFF) & (code > 0x01) & (code < 0xFF)
        is_marker &= ~((code >= 0xD0) & (code <= 0xD8))
        found = tf.reduce_any(is_marker)
        first = tf.argmax(is_marker, output_type=tf.int32)
        # The next window starts with the last byte of this one, since a marker may span both.
        return position + tf.where(found, first, tf.size(raw) - 1), found

    position, found = tf.while_loop(
        lambda position, found: (position + 1 < length) & ~found, body, (start, tf.constant(False))
    )
    return tf.where(found, position, length)


def _parse_segment(contents: Any, position: Any) -> tuple[Any, Any, Any]:
    """Return (is there a marker, its code, position of the next segment) for a position between segments.

    Fill bytes and other bytes that are not a marker are skipped one at a time, as decoders do.
    """
    import tensorflow as tf

    four = headers.read_bytes(contents, position, 4)
    code = four[1]
    is_marker = tf.equal(four[0], 0xFF) & (code > 0x01) & (code < 0xFF)
    following = position + 2 + tf.maximum(four[2] * 256 + four[3], 2)
    return is_marker, code, tf.where(is_marker, following, position + 1)


def _explain_failure(contents: Any, settings: Preprocessing) -> Any:
    """Return the status of a photo that did not decode by its frame header; OK if that is valid.

    UNSUPPORTED for a frame type that the decoder does not have, or for samples of other than 8 bits;
    TOO_LARGE for too many pixels.
    """
    import tensorflow as tf

    def step(position: Any) -> tuple[Any, Any]:
        is_marker, code, following = _parse_segment(contents, position)
        return is_marker & tf.reduce_any(tf.equal(code, _FRAMES)), following

    position = headers.find_segment(contents, 2, step)
    frame = headers.read_bytes(contents, position, 9)
    supported = tf.reduce_any(tf.equal(frame[1], _SUPPORTED_FRAMES)) & tf.equal(frame[4], 8)
    sides = headers.read_pair(frame, 5, 7, 2, "big")
    too_large = sides[0] * sides[1] > settings.max_pixels
    status = tf.where(supported, tf.where(too_large, TOO_LARGE, OK), UNSUPPORTED)
    whole = (position >= 0) & (position + 9 <= tf.strings.length(contents))
    return tf.where(whole, status, OK)


def _read_orientation(contents: Any) -> Any:
    """Return the EXIF orientation, 1 to 8, as int32.

    It is read from the first APP1 segment with the EXIF identifier before the scan. The same bytes in
    a comment, in XMP or in a thumbnail are ignored.
    """
    import tensorflow as tf

    def step(position: Any) -> tuple[Any, Any]:
        is_marker, code, following = _parse_segment(contents, position)
        identifier = tf.strings.substr(contents, tf.minimum(position + 4, length), len(exif.IDENTIFIER))
        found = is_marker & tf.equal(code, _APP1) & tf.equal(identifier, exif.IDENTIFIER)
        over = is_marker & (tf.equal(code, _START_OF_SCAN) | tf.equal(code, _END_OF_IMAGE))
        return found, tf.where(over, length, following)

    def read_tiff(position: Any) -> Any:
        size = headers.read_bytes(contents, position + 2, 2)
        body = tf.strings.substr(contents, position + 4, tf.maximum(size[0] * 256 + size[1] - 2, 0))
        return tf.strings.substr(body, len(exif.IDENTIFIER), 1 << 16)

    length = tf.strings.length(contents)
    # Most small photos have no EXIF at all: a substring search avoids the loop over their segments.
    is_large = length > _SMALL_BYTES
    return tf.cond(
        tf.cond(is_large, lambda: is_large, lambda: headers.contains(contents, exif.IDENTIFIER)),
        lambda: exif.find_orientation(contents, 2, step, read_tiff),
        lambda: tf.constant(1),
    )
