"""Small backbones for tests, entries of the TensorFlow Hub cache, and sample photos as pixels."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.dataset.download import cache_directory
from trainer.dataset.samples import fetch_all_photos


def small_module(
    directory: Path,
    *,
    weight: float = 1.0,
    function: Callable[[Any, Any], Any] | None = None,
    shape: tuple[int | None, ...] = (None, 16, 12, 3),
    signature_only: bool = False,
    dtype: str = "float32",
) -> str:
    """Save a module whose feature vector is the photo's mean multiplied by two weights."""
    import tensorflow as tf

    root = tf.train.Checkpoint()
    root.weights = tf.Variable([weight, 2.0], name="weights")
    compute = function or (lambda photos, weights: tf.reduce_mean(photos, [1, 2, 3])[:, None] * weights)

    @tf.function(input_signature=[tf.TensorSpec(shape, dtype, name="images")], autograph=False)
    def call(images: Any) -> Any:
        return compute(tf.cast(images, tf.float32), root.weights)

    @tf.function(input_signature=[tf.TensorSpec(shape, dtype, name="images")], autograph=False)
    def serve(images: Any) -> dict[str, Any]:
        return {"default": call(images)}

    if not signature_only:
        root.__call__ = call
    tf.saved_model.save(
        root, str(directory), signatures={"serving_default": serve} if signature_only else None
    )
    return str(directory)


def tf1_module(
    directory: Path,
    *,
    shape: tuple[int | None, ...] = (None, 16, 12, 3),
    attached: tuple[int, int] | None = None,
    classes: int = 0,
    resource: bool = True,
) -> str:
    """Save a module as TensorFlow 1's hub.Module did: untagged, with signatures and tfhub_module.pb."""
    import tensorflow as tf
    from google.protobuf.any_pb2 import Any as Attachment
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.wrappers_pb2 import BytesValue
    from tensorflow.core.protobuf import saved_model_pb2

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        images = v1.placeholder(tf.float32, shape)
        with v1.variable_scope("", use_resource=resource):
            weights = v1.get_variable("weights", initializer=[1.0, 2.0])
        features = tf.reduce_mean(images, [1, 2, 3])[:, None] * weights
        outputs = {"default": features, "Small/maps": images}
        logits = features[:, :1] * tf.ones([1, classes or 1])

        def signature(outputs: dict[str, Any]) -> Any:
            infos = {name: v1.saved_model.utils.build_tensor_info(value) for name, value in outputs.items()}
            return v1.saved_model.signature_def_utils.build_signature_def(
                {"images": v1.saved_model.utils.build_tensor_info(images)}, infos
            )

        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(directory))
        builder.add_meta_graph_and_variables(
            session,
            [],
            {
                "default": signature({"default": logits} if classes else outputs),
                "image_feature_vector": signature(outputs),
            },
        )
        builder.save()
    (directory / "tfhub_module.pb").write_bytes(b"\x08\x03")
    if attached:
        # Messages of the same layout stand for ModuleAttachment, ImageModuleInfo and InputSize.
        size = Duration(seconds=attached[0], nanos=attached[1])
        info = BytesValue(value=size.SerializeToString())
        messages = [
            Attachment(type_url="something_else", value=b"\xff"),
            Attachment(type_url="image_module_info", value=info.SerializeToString()),
        ]
        file = directory / "saved_model.pb"
        saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
        collection = saved.meta_graphs[0].collection_def["hub_module_attachments"].bytes_list
        collection.value.extend(message.SerializeToString() for message in messages)
        file.write_bytes(saved.SerializeToString())
    return str(directory)


def in_hub_cache(handle: str, module: str, cache: Path) -> str:
    """Put a module into the cache of tensorflow-hub as if it was downloaded from a handle."""
    shutil.copytree(module, cache / hashlib.sha1(handle.encode()).hexdigest())
    return handle


def pixels(names: list[str], size: int = 224) -> NDArray[np.float32]:
    """Return sample photos as float32 [N,size,size,3] in [0,1], resized by Pillow with antialiasing."""
    from PIL import Image

    photos = []
    for name in names:
        with Image.open(fetch_all_photos(cache_directory()) / f"{name}.jpeg") as image:
            photos.append(np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)))
    return np.stack(photos).astype(np.float32) / 255
