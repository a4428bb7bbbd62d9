"""JPEG cases (ITU-T T.81, JFIF 1.02, Exif 2.32)."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from serving.contract import Status
from tests.corpus.case import Case, bad, good, open_case
from tests.corpus.exif import MISLEADING, ORDERS, exif, late_directory
from tests.corpus.images import HEIGHT, WIDTH, saved, scene, small

START, END = b"\xff\xd8", b"\xff\xd9"
SOF0, SOF2, DHT, SOS, DQT, COM = 0xC0, 0xC2, 0xC4, 0xDA, 0xDB, 0xFE
APP0, APP1, APP2, APP14 = 0xE0, 0xE1, 0xE2, 0xEE


def jpeg(image: Image.Image | None = None, **options: Any) -> bytes:
    """Return an image, by default the large scene, as JPEG by Pillow."""
    return saved(image or scene(), "JPEG", **{"quality": 92, **options})


def segment(marker: int, body: bytes) -> bytes:
    """Return a marker segment; its length includes itself."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def with_segments(*segments: bytes, photo: bytes | None = None) -> bytes:
    """Return a photo with segments inserted after the start of image."""
    photo = photo or jpeg()
    return photo[:2] + b"".join(segments) + photo[2:]


def frame(width: int, height: int, marker: int = SOF0, precision: int = 8, parts: int = 3) -> bytes:
    """Return a JPEG that ends with its frame header."""
    components = b"".join(bytes([number, 0x11, 0]) for number in range(1, parts + 1))
    return START + segment(marker, struct.pack(">BHHB", precision, height, width, parts) + components)


SCAN = segment(SOS, b"\x01\x01\0\x01\x01\0")
"""Header of a scan of one component, without data."""

XMP = segment(APP1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'/>")


def until_scan(content: bytes) -> bytes:
    return content[: content.index(b"\xff\xda")]


@dataclass(frozen=True, slots=True)
class Part:
    """Marker segment; for a scan, `end` is after the entropy-coded data.

    Attributes:
        start: of the marker.
        body: behind marker and length.
        header_end: behind the segment proper.
    """

    marker: int
    start: int
    body: int
    header_end: int
    end: int


def parts(content: bytes) -> list[Part]:
    """Return the segments of a sound JPEG, from the first one after SOI to the last scan."""
    found, at = [], 2
    while content[at + 1] != 0xD9:
        marker = content[at + 1]
        header_end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        end = header_end
        if marker == SOS:
            while content[end] != 0xFF or content[end + 1] == 0 or 0xD0 <= content[end + 1] <= 0xD7:
                end += 1
        found.append(Part(marker, at, at + 4, header_end, end))
        at = end
    return found


def part(content: bytes, marker: int) -> Part:
    """Return the first segment with a marker."""
    return next(found for found in parts(content) if found.marker == marker)


def without(content: bytes, *markers: int) -> bytes:
    """Return the content without all segments with these markers."""
    for found in reversed(parts(content)):
        if found.marker in markers:
            content = content[: found.start] + content[found.end :]
    return content


def before(content: bytes, marker: int, *inserted: bytes) -> bytes:
    """Return the content with bytes inserted before the first segment with a marker."""
    at = part(content, marker).start
    return content[:at] + b"".join(inserted) + content[at:]


def patched(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


def of_kind(content: bytes, marker: int) -> bytes:
    """Return the content with another marker of the frame header."""
    at = next(found for found in parts(content) if found.marker in (SOF0, SOF2)).start
    return patched(content, at + 1, bytes([marker]))


def sized(content: bytes, width: int, height: int) -> bytes:
    """Return the content with other sides in the frame header."""
    at = next(found for found in parts(content) if found.marker in (SOF0, SOF2)).body
    return patched(content, at + 1, struct.pack(">HH", height, width))


def scans_apart(image: Image.Image | None = None, times: int = 1, empty: int = 0) -> bytes:
    """Return a baseline JPEG with one scan per component (T.81, A.2.2), which no common encoder writes.

    Args:
        image: by default the small scene.
        times: how often all three scans come.
        empty: how many scans without data come behind.
    """
    greys = [jpeg(channel) for channel in (image or small()).convert("YCbCr").split()]
    first = parts(greys[0])
    tables = b"".join(greys[0][p.start : p.end] for p in first if p.marker in (DQT, DHT))
    sides = greys[0][part(greys[0], SOF0).body + 1 :][:4]
    components = b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3))
    header = segment(SOF0, b"\x08" + sides + b"\x03" + components)
    scans = []
    for number, grey in enumerate(greys, 1):
        scan = part(grey, SOS)
        scans.append(segment(SOS, bytes([1, number, 0, 0, 63, 0])) + grey[scan.header_end : scan.end])
    more = segment(SOS, bytes([1, 1, 0, 0, 63, 0])) * empty
    return START + tables + header + b"".join(scans) * times + more + END


def many_scans(photo: bytes, count: int) -> bytes:
    """Return a progressive photo with `count` more copies of its first scan, without data."""
    scan = part(photo, SOS)
    return photo[: scan.end] + photo[scan.start : scan.header_end] * count + photo[scan.end :]


def real_scans(photo: bytes) -> int:
    return sum(found.marker == SOS for found in parts(photo))


def cut_status(content: bytes, at: int) -> Status:
    """Return the expected status of a sound JPEG that is truncated at `at`.

    It is truncated where an end of image put behind it makes it whole: some scan must have begun,
    and no segment may be open, which would take the end of image for its own bytes.
    """
    if at < 3:
        return Status.NOT_AN_IMAGE if at else Status.EMPTY
    found = parts(content)
    scan = next(p for p in found if p.marker == SOS)
    if at < scan.header_end or any(p.start + 2 <= at < p.header_end for p in found):
        return Status.CORRUPT
    return Status.TRUNCATED


def cases() -> Iterator[Case]:
    """Yield all JPEG cases."""
    yield from _kinds()
    yield from _segments()
    yield from _oriented()
    yield from _cuts()
    yield from _behind()
    yield from _broken()
    yield from _bombs()
    yield from _shapes()


def _photos() -> dict[str, bytes]:
    image = small()
    cmyk = jpeg(image.convert("CMYK"))
    adobe = part(cmyk, APP14)
    return {
        "baseline": jpeg(image),
        "progressive": jpeg(image, progressive=True),
        "optimised": jpeg(image, optimize=True),
        "4:4:4": jpeg(image, subsampling=0),
        "4:2:2": jpeg(image, subsampling=1),
        "4:2:0": jpeg(image, subsampling=2),
        "progressive, 4:4:4": jpeg(image, progressive=True, subsampling=0),
        "worst quality": jpeg(image, quality=1),
        "best quality": jpeg(image, quality=100),
        "grey": jpeg(image.convert("L")),
        "grey, progressive": jpeg(image.convert("L"), progressive=True),
        "CMYK": cmyk,
        "CMYK, progressive": jpeg(image.convert("CMYK"), progressive=True),
        "CMYK without Adobe's marker": without(cmyk, APP14),
        "YCCK": patched(cmyk, adobe.header_end - 1, b"\x02"),
        "RGB": jpeg(image, keep_rgb=True),
        "YCbCr that Adobe's marker calls RGB": without(
            with_segments(segment(APP14, b"Adobe\0\x64\0\0\0\0\0"), photo=jpeg(image)), APP0
        ),
        "Adobe's marker with an unknown transform": without(
            with_segments(segment(APP14, b"Adobe\0\x64\0\0\0\0\x07"), photo=jpeg(image)), APP0
        ),
        "restart markers": jpeg(image, restart_marker_blocks=1),
        "restart markers, progressive": jpeg(image, restart_marker_blocks=2, progressive=True),
        "extended sequential": of_kind(jpeg(image), 0xC1),
        "a scan for each component": scans_apart(),
        "the three scans of the components twice": scans_apart(times=2),
    }


def _kinds() -> Iterator[Case]:
    for name, content in _photos().items():
        yield good(f"jpeg/{name}", content, WIDTH, HEIGHT)
    # The decoder supports arithmetic coding, and decodes these Huffman codes to something.
    yield good("jpeg/frame of kind SOF9", of_kind(_photos()["baseline"], 0xC9), WIDTH, HEIGHT)
    for marker in (0xC3, 0xC5, 0xC6, 0xC7, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF):
        content = of_kind(_photos()["baseline"], marker)
        yield bad(f"jpeg/frame of kind SOF{marker - 0xC0}", content, Status.UNSUPPORTED_FORMAT)
    for name in ("baseline", "extended sequential", "progressive"):
        photo = _photos()[name]
        at = next(p for p in parts(photo) if p.marker in (0xC0, 0xC1, 0xC2)).body
        for bits in (12, 16):
            yield bad(
                f"jpeg/{name} of {bits} bits", patched(photo, at, bytes([bits])), Status.UNSUPPORTED_FORMAT
            )
    photo = jpeg(small())
    yield open_case("jpeg/no Huffman tables, as in Motion JPEG", without(photo, DHT))
    yield open_case("jpeg/two components", frame(16, 16, parts=2) + SCAN + END)


def _segments() -> Iterator[Case]:
    photo = jpeg(small())
    progressive = jpeg(small(), progressive=True)
    thumbnail = bytes([8, 8]) + bytes(range(192))
    jfif = segment(APP0, b"JFIF\0\x01\x02\0\0\x01\0\x01" + thumbnail)
    inside = exif(6) + bytes(8) + jpeg(scene(16, 16))
    apps = b"".join(
        segment(marker, b"vendor\0" + bytes(20)) for marker in range(0xE2, 0xF0) if marker != 0xEE
    )
    odd = {
        "an ICC profile in two segments": jpeg(small(), icc_profile=bytes(70_000)),
        "a JFIF thumbnail": START + jfif + without(photo, APP0)[2:],
        "a JFIF thumbnail that is cut off": START + segment(APP0, jfif[4:40]) + without(photo, APP0)[2:],
        "no JFIF": without(photo, APP0),
        "a comment": with_segments(segment(COM, b"a comment"), photo=photo),
        "an empty comment": with_segments(segment(COM, b""), photo=photo),
        "a comment of 65533 bytes": with_segments(segment(COM, b"x" * 65533), photo=photo),
        "a comment that mentions Exif": with_segments(segment(COM, exif(6)), photo=photo),
        "a comment that holds a segment of Exif": with_segments(
            segment(COM, b"see " + segment(APP1, exif(6))), photo=photo
        ),
        "a comment that holds markers": with_segments(segment(COM, SCAN + END + frame(9, 9)), photo=photo),
        "a comment between the scans": before(progressive, DHT, segment(COM, b"hello")),
        "every application segment": with_segments(apps, photo=photo),
        "two hundred comments": with_segments(segment(COM, b"again") * 200, photo=photo),
        "XMP": with_segments(XMP, photo=photo),
        "XMP that mentions Exif": with_segments(segment(APP1, b"http://x/\0" + exif(6)), photo=photo),
        "Exif in APP2": with_segments(segment(APP2, exif(6)), photo=photo),
        "Exif without its two zeros": with_segments(segment(APP1, b"Exif" + exif(6)[6:]), photo=photo),
        "Exif behind the end": photo + segment(APP1, exif(6)),
        "Exif between the scans": _between_scans(progressive, segment(APP1, exif(6))),
        "fill bytes before a marker": before(photo, DQT, b"\xff" * 7),
        "fill bytes before every marker": _filled(photo),
        "thousands of fill bytes": before(photo, DQT, b"\xff" * 5000),
        "garbage before a marker": before(photo, SOF0, b"garbage"),
        "zeros before a marker": before(photo, DQT, bytes(100)),
        "a tables segment repeated": before(
            photo, SOF0, photo[part(photo, DQT).start : part(photo, DQT).end]
        ),
        "a restart marker in the headers": before(photo, SOF0, b"\xff\xd0"),
    }
    for name, content in odd.items():
        yield good(f"jpeg/with {name}", content, WIDTH, HEIGHT)
    turned = {
        "Exif before JFIF": with_segments(segment(APP1, exif(6)), photo=photo),
        "Exif behind JFIF": before(photo, DQT, segment(APP1, exif(6))),
        "Exif behind XMP": with_segments(XMP, segment(APP1, exif(6)), photo=photo),
        "Exif behind a comment": with_segments(segment(COM, b"first"), segment(APP1, exif(6)), photo=photo),
        "Exif behind a comment that mentions it": with_segments(
            segment(COM, exif(1)), segment(APP1, exif(6)), photo=photo
        ),
        "Exif behind XMP that mentions it": with_segments(
            segment(APP1, b"http://x/\0" + exif(3)), segment(APP1, exif(6)), photo=photo
        ),
        "Exif behind a long profile": with_segments(
            segment(APP2, bytes(65_000)) * 5, segment(APP1, exif(6)), photo=photo
        ),
        "Exif behind the tables": before(photo, SOF0, segment(APP1, exif(6))),
        "Exif behind the frame header": before(photo, DHT, segment(APP1, exif(6))),
        "Exif right before the scan": before(photo, SOS, segment(APP1, exif(6))),
        "Exif behind fill bytes": with_segments(b"\xff" * 5, segment(APP1, exif(6)), photo=photo),
        "Exif twice, the first one counts": with_segments(
            segment(APP1, exif(6)), segment(APP1, exif(1)), photo=photo
        ),
        "Exif that holds a preview": with_segments(segment(APP1, inside), photo=photo),
        "Exif with other entries first": with_segments(segment(APP1, late_directory(6)), photo=photo),
        "Exif with other entries first, big-endian": with_segments(
            segment(APP1, late_directory(6, ">")), photo=photo
        ),
        "Exif with a long number": with_segments(segment(APP1, exif(6, kind=4)), photo=photo),
        "Exif with a long number, big-endian": with_segments(
            segment(APP1, exif(6, ">", kind=4)), photo=photo
        ),
        "Exif of 65533 bytes": with_segments(segment(APP1, exif(6).ljust(65533, b"\0")), photo=photo),
    }
    for name, content in turned.items():
        yield good(f"jpeg/with {name}", content, WIDTH, HEIGHT, 6)
    twice = with_segments(segment(APP1, exif(1)), segment(APP1, exif(6)), photo=photo)
    yield good("jpeg/with Exif twice, the second one does not count", twice, WIDTH, HEIGHT)


def _between_scans(photo: bytes, inserted: bytes) -> bytes:
    at = part(photo, SOS).end
    return photo[:at] + inserted + photo[at:]


def _filled(photo: bytes) -> bytes:
    for found in reversed(parts(photo)):
        photo = photo[: found.start] + b"\xff\xff" + photo[found.start :]
    return photo


def _oriented() -> Iterator[Case]:
    for kind, photo in {"baseline": jpeg(small()), "progressive": jpeg(small(), progressive=True)}.items():
        for word, order in ORDERS.items():
            for number in range(1, 9):
                content = with_segments(segment(APP1, exif(number, order)), photo=photo)
                yield good(f"jpeg/{kind}/orientation {number}/{word}", content, WIDTH, HEIGHT, number)
    for name, body in MISLEADING.items():
        content = with_segments(segment(APP1, body), photo=jpeg(small()))
        yield good(f"jpeg/misleading Exif/{name}", content, WIDTH, HEIGHT)


def _cuts() -> Iterator[Case]:
    about = segment(APP1, exif(6)) + segment(COM, b"a comment")
    whole = {
        "baseline": with_segments(about, photo=jpeg(small())),
        "progressive": with_segments(about, photo=jpeg(small(), progressive=True)),
        "restart markers": jpeg(small(), restart_marker_blocks=1),
        "a scan for each component": scans_apart(),
    }
    for kind, photo in whole.items():
        sides = (WIDTH, HEIGHT) if b"Exif" in photo else (HEIGHT, WIDTH)
        for name, at in _places(photo, few=b"Exif" not in photo).items():
            status = cut_status(photo, at)
            height, width = sides if status is Status.TRUNCATED else (0, 0)
            yield Case(f"jpeg/{kind}/cut {name}", photo[:at], status, height, width)


def _places(photo: bytes, *, few: bool) -> dict[str, int]:
    """Return the positions to truncate at: at and in every segment, and along the scans."""
    places = {}
    seen: dict[int, int] = {}
    for found in parts(photo):
        seen[found.marker] = seen.get(found.marker, 0) + 1
        label = f"{found.marker:02X} number {seen[found.marker]}"
        if not few or found.marker == SOS:
            places[f"before {label}"] = found.start
            places[f"in the marker of {label}"] = found.start + 1
            places[f"behind the marker of {label}"] = found.start + 2
            places[f"in the length of {label}"] = found.start + 3
            places[f"in {label}"] = (found.body + found.header_end) // 2
        if found.marker == SOS:
            length = found.end - found.header_end
            places[f"behind the header of {label}"] = found.header_end
            for tenth in range(1, 10, 4 if few or seen[SOS] > 1 else 1):
                places[f"at {tenth}/10 of the data of {label}"] = found.header_end + length * tenth // 10
    places["before the end of image"] = len(photo) - 2
    places["in the end of image"] = len(photo) - 1
    return places


def _behind() -> Iterator[Case]:
    """Yield photos with trailing bytes after the end of image, which are ignored."""
    photo, progressive = jpeg(small()), jpeg(small(), progressive=True)
    film = random.Random(3).randbytes(3000)
    large = jpeg(Image.new("RGB", (1200, 1000), (90, 120, 60)), progressive=True)
    for name, content in {
        "one byte": photo + b"\0",
        "text": photo + b"trailing text",
        "zeros": photo + bytes(5000),
        "noise": photo + film,
        "a second start of image": photo + START,
        "a second photo": photo + jpeg(scene(20, 30)),
        "a second photo that is turned": photo + with_segments(segment(APP1, exif(6)), photo=photo),
        "a second photo that is cut off": photo + progressive[: len(progressive) // 2],
        "a second photo behind a progressive one": progressive + photo,
        "a second end of image": photo + END,
        "a film with thousands of scan markers": photo + (film[:14] + b"\xff\xda") * 3000,
        "a bomb's header": photo + frame(65500, 65500, SOF2) + SCAN * 100,
    }.items():
        yield good(f"jpeg/behind it {name}", content, WIDTH, HEIGHT)
    film = (film[:14] + b"\xff\xda") * 3000
    yield good("jpeg/behind a large progressive one a film with scan markers", large + film, 1200, 1000)
    inside = with_segments(segment(APP1, exif(1) + (b"\xff\xda" * 2000)) * 2, photo=large)
    yield good("jpeg/in Exif of a large progressive one scan markers", inside, 1200, 1000)


def _broken() -> Iterator[Case]:
    photo = jpeg(small())
    progressive = jpeg(small(), progressive=True)
    sof, sos, dqt, dht = (part(photo, marker) for marker in (SOF0, SOS, DQT, DHT))
    header = photo[sof.start : sof.end]
    scan = photo[sos.start : sos.end]
    for name, content in {
        "its signature alone": b"\xff\xd8\xff",
        "start and end alone": START + END,
        "no frame header": without(photo, SOF0),
        "no quantisation tables": without(photo, DQT),
        "no scan": without(photo, SOS),
        "the headers alone": until_scan(photo),
        "the frame header twice": before(photo, DHT, header),
        "two frame headers of different sides": before(photo, DHT, frame(20, 20)[2:]),
        "two starts of image": START + photo,
        "height 0, to be told by DNL": sized(photo, WIDTH, 0)[:-2] + b"\xff\xdc\0\x04\0\x20" + END,
        "height 0": sized(photo, WIDTH, 0),
        "width 0": sized(photo, 0, HEIGHT),
        "no sides": sized(photo, 0, 0),
        "progressive without sides": sized(progressive, 0, 0),
        "no components": patched(photo, sof.body + 5, b"\0"),
        "a component number too many": patched(photo, sof.body + 5, b"\x04"),
        "sampling factor 0": patched(photo, sof.body + 7, b"\0"),
        "sampling factor 15": patched(photo, sof.body + 7, b"\xff"),
        "quantisation table 9": patched(photo, sof.body + 8, b"\x09"),
        "Huffman table 15": patched(photo, dht.body, b"\x0f"),
        "Huffman table of kind 15": patched(photo, dht.body, b"\xf0"),
        "Huffman counts beyond 256": patched(photo, dht.body + 1, b"\xff" * 16),
        "quantisation table 15": patched(photo, dqt.body, b"\x0f"),
        "a scan of no components": patched(photo, sos.body, b"\0"),
        "a scan of 5 components": patched(photo, sos.body, b"\x05"),
        "a scan of an unknown component": patched(photo, sos.body + 1, b"\x77"),
        "the scan before the frame": before(without(photo, SOS), SOF0, scan),
        "a segment length of 0": patched(photo, dqt.start + 2, b"\0\0"),
        "a segment length of 1": patched(photo, dqt.start + 2, b"\0\x01"),
        "a segment length of 65535": patched(photo, dqt.start + 2, b"\xff\xff"),
        "a frame header cut by its length": before(photo, SOF0, segment(SOF0, b"\x08\0\x20\0\x30\x03")),
        "zeros behind the signature": b"\xff\xd8\xff" + bytes(500),
        "fill bytes alone": b"\xff\xd8" + b"\xff" * 5000,
        "text behind the signature": b"\xff\xd8\xff and then some text about photos" * 20,
    }.items():
        yield bad(f"jpeg/broken/{name}", content, Status.CORRUPT)
    for name, content in {
        "an empty scan": photo[: sos.header_end] + END,
        "the scan's data all zeros": photo[: sos.header_end] + bytes(sos.end - sos.header_end) + END,
        "the scan's data all ones": photo[: sos.header_end] + b"\xff\0" * 500 + END,
        "the scan's data twice": photo[: sos.end] + photo[sos.header_end :],
        "more rows than it has data for": sized(photo, WIDTH, 5 * HEIGHT),
        "fewer rows than it has data for": sized(photo, WIDTH, HEIGHT // 2),
        "restart markers out of order": _restarts(b"\xff\xd5"),
        "restart markers lost": _restarts(b""),
    }.items():
        height = {"more": 5 * HEIGHT, "fewer": HEIGHT // 2}.get(name.split()[0], HEIGHT)
        yield good(f"jpeg/damaged/{name}", content, WIDTH, height)
    yield open_case("jpeg/damaged/the whole scan twice", photo[: sos.end] + scan + END)


def _restarts(instead: bytes) -> bytes:
    """Return a photo with restart intervals whose restart markers are changed."""
    photo = jpeg(small(), restart_marker_blocks=1)
    scan = part(photo, SOS)
    data = photo[scan.header_end : scan.end].replace(b"\xff\xd1", instead).replace(b"\xff\xd2", instead)
    return photo[: scan.header_end] + data + photo[scan.end :]


def _bombs() -> Iterator[Case]:
    photo, progressive = jpeg(small()), jpeg(small(), progressive=True)
    tile = scene(512, 512)
    medium, apart = jpeg(tile, progressive=True, quality=30), scans_apart(Image.new("RGB", (512, 512)))
    data = photo[part(photo, DHT).start :]
    for name, content in {
        "65535x65535": sized(photo, 65535, 65535),
        "65500x65500": sized(photo, 65500, 65500),
        "30000x30000": sized(photo, 30000, 30000),
        "11000x11000": sized(photo, 11000, 11000),
        "65535x65535 in a frame header alone": frame(65535, 65535) + SCAN,
        "progressive, 65535x65535": sized(progressive, 65535, 65535),
        "progressive, 30000x30000": sized(progressive, 30000, 30000),
        "progressive, 8000x8000": sized(progressive, 8000, 8000),
        "a scan for each component, 8000x8000": sized(scans_apart(), 8000, 8000),
        "progressive, 4000x4000, 500 scans without tables": frame(4000, 4000, SOF2) + SCAN * 500,
        "progressive, 512x512, 3000 scans": many_scans(medium, 3000),
        "progressive, 2000x2000, 200 scans": many_scans(sized(progressive, 2000, 2000), 200),
        "a scan for each component, 512x512, 3000 scans": scans_apart(
            Image.new("RGB", (512, 512)), empty=3000
        ),
        "a scan for each component, 2000x2000, 200 scans": sized(scans_apart(empty=200), 2000, 2000),
        "30000x30000 with Exif": with_segments(segment(APP1, exif(6)), photo=sized(photo, 30000, 30000)),
        "30000x30000 behind 300 comments": with_segments(
            segment(COM, b"again") * 300, photo=sized(photo, 30000, 30000)
        ),
        "30000x30000 behind a small preview": with_segments(
            segment(APP1, exif(1) + jpeg(scene(8, 8))), photo=sized(photo, 30000, 30000)
        ),
        "30000x30000 behind garbage": before(sized(photo, 30000, 30000), SOF0, b"\0garbage"),
        "30000x30000 with tables behind it": frame(30000, 30000) + data,
    }.items():
        yield bad(f"jpeg/bomb/{name}", content, Status.TOO_LARGE)
    for name, content, side in [
        ("progressive, 64x64, 5000 scans", many_scans(jpeg(scene(64, 64), progressive=True), 5000), 64),
        ("progressive, 512x512, 1000 scans", many_scans(medium, 1000), 512),
        ("a scan for each component, 32x32, 5000 scans", scans_apart(scene(32, 32), empty=5000), 32),
        ("a scan for each component, 512x512", apart, 512),
        ("baseline, 4000x4000 in a few bytes", sized(jpeg(small().convert("L")), 4000, 4000), 4000),
    ]:
        yield good(f"jpeg/no bomb/{name}", content, side, side)


def _shapes() -> Iterator[Case]:
    for width, height in [
        (1, 1),
        (1, 20_000),
        (20_000, 1),
        (65_500, 1),
        (2, 3),
        (7, 9),
        (224, 224),
        (3, 2000),
    ]:
        image = Image.new("RGB", (width, height), (200, 100, 50))
        yield good(f"jpeg/{width}x{height}", jpeg(image), width, height)
    yield good("jpeg/progressive, 1x1", jpeg(scene(1, 1), progressive=True), 1, 1)
    # libjpeg's JPEG_MAX_DIMENSION is 65500.
    widest = jpeg(Image.new("RGB", (65_500, 1)))
    yield bad("jpeg/65535x1", sized(widest, 65_535, 1), Status.CORRUPT)
