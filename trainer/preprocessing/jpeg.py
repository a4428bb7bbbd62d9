"""JPEG (ITU-T T.81): decoded at a reduced scale, with Exif's orientation, guarded against bombs of scans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainer.preprocessing import exif, headers, limits, resize
from trainer.preprocessing.limits import Claim, Decoded, Lane
from trainer.preprocessing.settings import OK, TOO_LARGE, TRUNCATED, UNSUPPORTED, Preprocessing

SIGNATURE = b"\xff\xd8\xff"

_START_OF_SCAN, _END_OF_IMAGE, _APP1 = 0xDA, 0xD9, 0xE1
_SOF_BASELINE, _SOF_EXTENDED, _SOF_PROGRESSIVE = 0xC0, 0xC1, 0xC2
_FRAMES = [code for code in range(0xC0, 0xD0) if code not in (0xC4, 0xC8, 0xCC)]
"""Markers of a frame header (table B.1)."""

_SMALL_BYTES = 1 << 18
"""Up to here looking for a word in all bytes is quicker than a walk over the segments."""

_SUPPORTED_FRAMES = [_SOF_BASELINE, _SOF_EXTENDED, _SOF_PROGRESSIVE, 0xC9]
"""What the decoder has, the last one with arithmetic coding; lossless and hierarchical ones it has not."""

_MOST_MARKERS = 4096
_WINDOW_BYTES = 1 << 16

_BYTES_A_PIXEL = 6
"""Coefficients of 16 bits for each of three components, held for all pixels where scans are several."""


def decode(contents: Any, settings: Preprocessing, lane: Lane | None, zoom: Any = 1.0) -> Decoded:
    """One JPEG; with `lane.mend` the end that it lacks is put behind it, and the rest stays grey.

    Args:
        contents: its bytes, string scalar.
        settings: sizes and limits.
        lane: how it is decoded; None: FIRST, which leaves what may be too large to the next.
        zoom: the part of its sides that is wanted, from 0 to 1.
    """
    import tensorflow as tf

    source = contents
    if lane is limits.FIRST:
        sides = _sides(contents)
        status = tf.where(_may_be_too_large(contents, sides, settings), limits.UNUSUAL, OK)
    else:
        why = tf.cond(lane.mend, lambda: _why_failed(contents, settings), lambda: tf.constant(OK))
        sides = tf.cond(tf.equal(why, OK), lambda: _sides(contents), lambda: tf.ones([2], tf.int64))
        status = tf.where(lane.mend, TRUNCATED, OK)
        status = tf.where(_is_too_large(contents, sides, settings), TOO_LARGE, status)
        status = tf.where(tf.equal(why, OK), status, why)
        source = tf.strings.join([contents, tf.where(lane.mend, bytes([0xFF, _END_OF_IMAGE]), b"")])
    orientation = _orientation(contents)
    # The largest reduction in the DCT that leaves both sides at least as large as they must be.
    room = resize.room(sides, settings, orientation >= 5) * zoom
    scale = tf.where(room >= 8, 3, tf.where(room >= 4, 2, tf.where(room >= 2, 1, 0)))

    def at(ratio: int) -> Callable[[], Any]:
        return lambda: tf.io.decode_jpeg(source, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")

    claim = Claim(sides, status, sides[0] * sides[1] * _BYTES_A_PIXEL, orientation)
    return limits.decode(claim, lambda: tf.switch_case(scale, [at(1), at(2), at(4), at(8)]), settings, lane)


def _sides(contents: Any) -> Any:
    """Height and width by the header, int64 [2]. Fails where the decoder does not take it."""
    import tensorflow as tf

    return tf.cast(tf.ensure_shape(tf.image.extract_jpeg_shape(contents)[:2], [2]), tf.int64)


def _may_be_too_large(contents: Any, sides: Any, settings: Preprocessing) -> Any:
    """Whether decoding might cost too much time or memory; bool.

    Scan markers are counted anywhere in the bytes, which is cheap and can only overcount: a preview
    in Exif, a film that the phone appended.
    """
    import tensorflow as tf

    scans = tf.size(tf.strings.split(contents, bytes([0xFF, _START_OF_SCAN])), out_type=tf.int64) - 1
    return _costs_too_much(sides, scans, settings)


def _is_too_large(contents: Any, sides: Any, settings: Preprocessing) -> Any:
    """Whether decoding costs too much time or memory, by its real scans; bool."""
    import tensorflow as tf

    def certain() -> Any:
        enough = settings.max_scan_pixels // tf.maximum(sides[0] * sides[1], 1)
        return _costs_too_much(sides, _scans(contents, enough), settings)

    suspected = _may_be_too_large(contents, sides, settings)
    return tf.cond(suspected, certain, lambda: tf.constant(False))


def _costs_too_much(sides: Any, scans: Any, settings: Preprocessing) -> Any:
    """A JPEG of one scan is decoded row by row; one of several is held whole and gone through for each."""
    pixels = sides[0] * sides[1]
    whole = (pixels * scans > settings.max_scan_pixels) | (pixels > settings.max_whole_pixels)
    return (pixels > settings.max_pixels) | (scans > 1) & whole


def _scans(contents: Any, enough: Any) -> Any:
    """How many scans the decoder goes through, int64; counted up to one more than `enough`.

    Sequential JPEGs whose first scan has all components end there, whatever follows. All others
    go on to the end of the image. Segments are jumped over, so their bytes are not taken for markers.
    """
    import tensorflow as tf

    length = tf.strings.length(contents)

    def on(position: Any, scans: Any, components: Any, steps: Any) -> Any:
        del components
        return (position < length) & (scans <= enough) & (steps < _MOST_MARKERS)

    def body(position: Any, scans: Any, components: Any, steps: Any) -> Any:
        marker = _next_marker(contents, position)
        segment = headers.bytes_at(contents, marker, 10)
        code = segment[1]
        is_scan = tf.equal(code, _START_OF_SCAN)
        # A sequential frame leaves its number of components, any other none that a scan could have.
        sequential = tf.equal(code, _SOF_BASELINE) | tf.equal(code, _SOF_EXTENDED)
        components = tf.where(sequential, segment[9], components)
        components = tf.where(tf.equal(code, _SOF_PROGRESSIVE), 0, components)
        complete = is_scan & tf.equal(scans, 0) & tf.equal(segment[4], components)
        over = complete | tf.equal(code, _END_OF_IMAGE) | (marker >= length)
        following = marker + 2 + tf.maximum(segment[2] * 256 + segment[3], 2)
        scans += tf.cast(is_scan, tf.int64)
        return tf.where(over, length, following), scans, components, steps + 1

    start = (tf.constant(2), tf.constant(0, tf.int64), tf.constant(0), tf.constant(0))
    _, scans, _, steps = tf.while_loop(on, body, start)
    # So many segments are no photo's: there may be scans behind them.
    return tf.where(steps >= _MOST_MARKERS, enough + 1 + tf.cast(steps, tf.int64), scans)


def _next_marker(contents: Any, start: Any) -> Any:
    """Position of the first marker from `start` on, or the length.

    In a scan's data a marker is FF and then neither zero (a stuffed FF), FF (fill), nor a restart.
    """
    import tensorflow as tf

    length = tf.strings.length(contents)

    def on(position: Any, found: Any) -> Any:
        return (position + 1 < length) & tf.logical_not(found)

    def body(position: Any, found: Any) -> Any:
        raw = tf.io.decode_raw(tf.strings.substr(contents, position, _WINDOW_BYTES), tf.uint8)
        code = raw[1:]
        is_marker = tf.equal(raw[:-1], 0xFF) & (code > 0x01) & (code < 0xFF)
        is_marker &= ~((code >= 0xD0) & (code <= 0xD8))
        found = tf.reduce_any(is_marker)
        first = tf.argmax(is_marker, output_type=tf.int32)
        # The last byte is looked at again, with the one behind it.
        return position + tf.where(found, first, tf.size(raw) - 1), found

    position, found = tf.while_loop(on, body, (start, tf.constant(False)))
    return tf.where(found, position, length)


def _segment(contents: Any, position: Any) -> tuple[Any, Any, Any]:
    """At a position between segments: whether a marker is there, its code, and where the next begins.

    Fill bytes and what is no marker are passed over a byte at a time, as decoders do.
    """
    import tensorflow as tf

    four = headers.bytes_at(contents, position, 4)
    code = four[1]
    is_marker = tf.equal(four[0], 0xFF) & (code > 0x01) & (code < 0xFF)
    following = position + 2 + tf.maximum(four[2] * 256 + four[3], 2)
    return is_marker, code, tf.where(is_marker, following, position + 1)


def _why_failed(contents: Any, settings: Preprocessing) -> Any:
    """Of a photo that did not decode, the status that its frame explains; OK where it explains nothing."""
    import tensorflow as tf

    def step(position: Any) -> tuple[Any, Any]:
        is_marker, code, following = _segment(contents, position)
        return is_marker & tf.reduce_any(tf.equal(code, _FRAMES)), following

    position = headers.walk(contents, 2, step)
    frame = headers.bytes_at(contents, position, 9)
    supported = tf.reduce_any(tf.equal(frame[1], _SUPPORTED_FRAMES)) & tf.equal(frame[4], 8)
    sides = tf.stack([headers.number(frame, (6, 5)), headers.number(frame, (8, 7))])
    status = tf.where(supported, limits.judge(sides, settings.max_pixels), UNSUPPORTED)
    whole = (position >= 0) & (position + 9 <= tf.strings.length(contents))
    return tf.where(whole, status, OK)


def _orientation(contents: Any) -> Any:
    """Exif's orientation, 1 to 8; int32.

    What decides is the first APP1 with Exif's identifier before the scan: the same word in a
    comment, in XMP or in a preview means nothing.
    """
    import tensorflow as tf

    def step(position: Any) -> tuple[Any, Any]:
        is_marker, code, following = _segment(contents, position)
        identifier = tf.strings.substr(contents, tf.minimum(position + 4, length), len(exif.IDENTIFIER))
        found = is_marker & tf.equal(code, _APP1) & tf.equal(identifier, exif.IDENTIFIER)
        over = is_marker & (tf.equal(code, _START_OF_SCAN) | tf.equal(code, _END_OF_IMAGE))
        return found, tf.where(over, length, following)

    def read() -> Any:
        position = headers.walk(contents, 2, step)

        def parse() -> Any:
            size = headers.bytes_at(contents, position + 2, 2)
            body = tf.strings.substr(contents, position + 4, tf.maximum(size[0] * 256 + size[1] - 2, 0))
            return exif.orientation(tf.strings.substr(body, len(exif.IDENTIFIER), 1 << 16))

        return tf.cond(position >= 0, parse, lambda: tf.constant(1))

    length = tf.strings.length(contents)
    worth_a_walk = tf.cond(
        length > _SMALL_BYTES,
        lambda: tf.constant(True),
        lambda: headers.has(contents, exif.IDENTIFIER),
    )
    return tf.cond(worth_a_walk, read, lambda: tf.constant(1))
