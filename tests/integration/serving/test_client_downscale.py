"""Downscaling of photos before they are sent: size, EXIF orientation, formats, and photos left unchanged."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from serving import contract, protos
from serving.client import AsyncClient, Client, Prediction
from serving.errors import InputError
from serving.photos.converter import Converter
from tests.support.fake_grpc_server import Answer, answer_for, fake_grpc_server

pytestmark = pytest.mark.server


def encode_photo(width: int, height: int, form: str = "JPEG", **settings: Any) -> bytes:
    """Encode a noisy photo, hence not a small file, with a dark left half and a light right half."""
    pixels = np.random.default_rng(2).integers(0, 60, (height, width, 3), np.uint8)
    pixels[:, width // 2 :] += 180
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **settings)
    return buffer.getvalue()


def encode_with_orientation(width: int, height: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF orientation: rotate by 90 degrees clockwise
    return encode_photo(width, height, exif=exif)


@pytest.fixture(scope="module")
def converter() -> Iterator[Converter]:
    with Converter() as made:
        yield made


@pytest.mark.parametrize(("form", "settings"), [("JPEG", {}), ("PNG", {}), ("WEBP", {"quality": 80})])
def test_large_photo_is_downscaled_to_a_jpeg(
    converter: Converter, form: str, settings: dict[str, Any]
) -> None:
    found = converter.downscale(encode_photo(1300, 900, form, **settings), 300)
    assert found is not None
    assert (found.height, found.width) == (900, 1300)
    with Image.open(io.BytesIO(found.content)) as image:
        assert (image.format, image.size) == ("JPEG", (433, 300))
        grey = np.asarray(image.convert("L"), float)
    assert grey[:, :200].mean() < 60 < 180 < grey[:, -200:].mean()


def test_exif_orientation_is_applied_when_downscaling(converter: Converter) -> None:
    found = converter.downscale(encode_with_orientation(1300, 900), 300)
    assert found is not None
    assert (found.height, found.width) == (1300, 900)
    with Image.open(io.BytesIO(found.content)) as image:
        assert image.size == (300, 433)
        assert not dict(image.getexif())
        grey = np.asarray(image.convert("L"), float)
    assert grey[:150].mean() < 60 < 180 < grey[-150:].mean(), "rotated by 90 degrees clockwise"


def test_heic_is_downscaled(converter: Converter) -> None:
    import pillow_heif

    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (800, 640), (200, 100, 50))).save(file)
    found = converter.downscale(file.getvalue(), 160)
    assert found is not None
    with Image.open(io.BytesIO(found.content)) as image:
        assert (image.format, image.size) == ("JPEG", (200, 160))


def test_small_photo_is_not_upscaled(converter: Converter) -> None:
    found = converter.downscale(encode_photo(120, 80), 300)
    assert found is not None
    with Image.open(io.BytesIO(found.content)) as image:
        assert image.size == (120, 80)


@pytest.mark.parametrize(
    "content",
    [b"", b"no photo", b"GIF89a", encode_photo(600, 400)[:9000], b"\xff\xd8\xff", b"8BPS"],
    ids=["empty", "text", "GIF", "cut off", "header alone", "Photoshop"],
)
def test_undecodable_photo_is_not_downscaled(converter: Converter, content: bytes) -> None:
    assert converter.downscale(content, 300) is None


def describe_model(request: Any, _: grpc.ServicerContext) -> Any:
    declared = protos.SignatureDefMap()
    info = declared.signature_def[contract.CLASSIFY_PIXELS].inputs[contract.PIXELS]
    for size in (-1, 100, 100, 3):
        info.tensor_shape.dim.add(size=size)
    response = protos.GetModelMetadataResponse()
    response.metadata["signature_def"].Pack(declared)
    return response


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("copies", [1, 12])
def test_client_downscales_large_photos_to_twice_the_input_size_and_sends_others_unchanged(
    copies: int, asynchronous: bool
) -> None:
    seen: list[bytes] = []

    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        images = list(request.inputs["image_bytes"].string_val)
        seen.extend(images)
        return answer_for(images)

    answers: dict[str, Answer] = {protos.PREDICT: answer, protos.GET_MODEL_METADATA: describe_model}
    large, small = encode_photo(1300, 900), encode_photo(120, 80)
    broken = large[: len(large) // 2]
    photos = [large, small, broken] * copies

    async def ask(address: str) -> list[Prediction]:
        async with AsyncClient(address, model="food", downscale=True, max_photos=9) as client:
            return await client.classify(photos)

    with fake_grpc_server(answers) as address:
        if asynchronous:
            found = asyncio.run(ask(address))
        else:
            with Client(address, model="food", downscale=True, max_photos=9) as client:
                found = client.classify(photos)
    assert len(found) == len(seen) == 3 * copies
    assert seen.count(small) == seen.count(broken) == copies
    [reduced] = set(seen) - {small, broken}
    assert len(reduced) < len(large) / 5
    with Image.open(io.BytesIO(reduced)) as image:
        assert image.size == (289, 200)


def test_downscaling_without_pillow_is_an_error_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Converter, "_packages", {})
    with pytest.raises(InputError, match=r"pip install 'hubhead\[formats\]'"):
        Client("localhost:1", model="food", downscale=True)
