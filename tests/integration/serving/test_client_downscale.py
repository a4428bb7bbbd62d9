"""Photos reduced before they are sent: what comes out, and what is left as it is."""

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


def encoded(width: int, height: int, form: str = "JPEG", **settings: Any) -> bytes:
    """A photo with its left half dark and its right half light, and noise, so that it is not small."""
    pixels = np.random.default_rng(2).integers(0, 60, (height, width, 3), np.uint8)
    pixels[:, width // 2 :] += 180
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **settings)
    return buffer.getvalue()


def turned(width: int, height: int) -> bytes:
    about = Image.Exif()
    about[0x0112] = 6
    return encoded(width, height, exif=about)


@pytest.fixture(scope="module")
def converter() -> Iterator[Converter]:
    with Converter() as made:
        yield made


@pytest.mark.parametrize(("form", "settings"), [("JPEG", {}), ("PNG", {}), ("WEBP", {"quality": 80})])
def test_a_large_photo_becomes_a_jpeg_of_the_side(
    converter: Converter, form: str, settings: dict[str, Any]
) -> None:
    found = converter.downscale(encoded(1300, 900, form, **settings), 300)
    assert found is not None
    assert (found.height, found.width) == (900, 1300)
    with Image.open(io.BytesIO(found.content)) as image:
        assert (image.format, image.size) == ("JPEG", (433, 300))
        grey = np.asarray(image.convert("L"), float)
    assert grey[:, :200].mean() < 60 < 180 < grey[:, -200:].mean()


def test_it_is_upright_and_its_size_is_that_of_the_upright_original(converter: Converter) -> None:
    found = converter.downscale(turned(1300, 900), 300)
    assert found is not None
    assert (found.height, found.width) == (1300, 900)
    with Image.open(io.BytesIO(found.content)) as image:
        assert image.size == (300, 433)
        assert not dict(image.getexif())
        grey = np.asarray(image.convert("L"), float)
    assert grey[:150].mean() < 60 < 180 < grey[-150:].mean(), "turned by 90 degrees clockwise"


def test_heic_is_reduced_too(converter: Converter) -> None:
    import pillow_heif

    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (800, 640), (200, 100, 50))).save(file)
    found = converter.downscale(file.getvalue(), 160)
    assert found is not None
    with Image.open(io.BytesIO(found.content)) as image:
        assert (image.format, image.size) == ("JPEG", (200, 160))


def test_a_small_photo_is_never_enlarged(converter: Converter) -> None:
    found = converter.downscale(encoded(120, 80), 300)
    assert found is not None
    with Image.open(io.BytesIO(found.content)) as image:
        assert image.size == (120, 80)


@pytest.mark.parametrize(
    "content",
    [b"", b"no photo", b"GIF89a", encoded(600, 400)[:9000], b"\xff\xd8\xff", b"8BPS"],
    ids=["empty", "text", "GIF", "cut off", "header alone", "Photoshop"],
)
def test_what_cannot_be_reduced_is_left_to_the_model(converter: Converter, content: bytes) -> None:
    assert converter.downscale(content, 300) is None


def metadata(request: Any, _: grpc.ServicerContext) -> Any:
    declared = protos.SignatureDefMap()
    info = declared.signature_def[contract.CLASSIFY_PIXELS].inputs[contract.PIXELS]
    for size in (-1, 100, 100, 3):
        info.tensor_shape.dim.add(size=size)
    response = protos.GetModelMetadataResponse()
    response.metadata["signature_def"].Pack(declared)
    return response


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("copies", [1, 12])
def test_a_client_sends_large_photos_at_twice_the_models_input_and_others_as_they_are(
    copies: int, asynchronous: bool
) -> None:
    seen: list[bytes] = []

    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        images = list(request.inputs["image_bytes"].string_val)
        seen.extend(images)
        return answer_for(images)

    answers: dict[str, Answer] = {protos.PREDICT: answer, protos.GET_MODEL_METADATA: metadata}
    large, small = encoded(1300, 900), encoded(120, 80)
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


def test_without_pillow_downscaling_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Converter, "_packages", {})
    with pytest.raises(InputError, match=r"pip install 'hubhead\[formats\]'"):
        Client("localhost:1", model="food", downscale=True)
