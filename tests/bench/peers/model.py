"""The model of the comparison: one backbone and one head, as a bundle and in the formats of the peers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.callers import MODEL
from tests.bench.variants import load_signature, load_template
from trainer.heads import Head

BUNDLE = f"models/{MODEL}"
LABELS = "labels.txt"
"""File of the labels, in the order of the classifier's columns; written last."""


def write(top: Path) -> None:
    """Train a head on the sample photos, and write the model into a directory.

    It is the bundle BUNDLE; `classifier.onnx` and the SavedModel `classifier`, both from pixels uint8
    [N,224,224,3] to probabilities float32 [N,K]; and LABELS.
    """
    from serving import contract, runtime
    from trainer import heads
    from trainer.dataset.download import cache_directory
    from trainer.dataset.samples import fetch_sample_photos
    from trainer.export import bundle

    template = load_template()
    photos = sorted(fetch_sample_photos(cache_directory()).directory.glob("*/*"))
    labels = sorted({photo.parent.name for photo in photos})
    model = runtime.load(template.path)
    contents = (photo.read_bytes() for photo in photos)
    outputs = list(model.imap(contract.EMBED, contract.IMAGE_BYTES, contents))
    embeddings = np.concatenate([output[contract.EMBEDDING] for output in outputs])
    targets = np.array([labels.index(photo.parent.name) for photo in photos])
    head, _ = heads.fit(embeddings, targets, len(labels))
    bundle.export(template, bundle.HeadExport(head, labels), top / BUNDLE)
    _write_onnx(template.path / contract.ONNX_FILE, head, top / "classifier.onnx")
    _write_saved_model(head, top / "classifier")
    (top / LABELS).write_text("\n".join(labels))


def _write_onnx(backbone: Path, head: Head, file: Path) -> None:
    """Append the head to the backbone in ONNX."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(backbone)
    graph, embedding = model.graph, model.graph.output[0].name
    values = {
        "mean": head.scaling.mean,
        "scale": head.scaling.scale,
        "kernel": head.kernel,
        "bias": head.bias,
    }
    values["kernel"], values["bias"] = (values[name] / head.temperature for name in ("kernel", "bias"))
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, np.float32), f"head_{name}")
        for name, value in values.items()
    )
    graph.node.extend(
        [
            helper.make_node("Sub", [embedding, "head_mean"], ["head_centred"]),
            helper.make_node("Mul", ["head_centred", "head_scale"], ["head_scaled"]),
            helper.make_node("ReduceL2", ["head_scaled"], ["head_length"], axes=[1], keepdims=1),
            helper.make_node("Div", ["head_scaled", "head_length"], ["head_features"]),
            helper.make_node("Gemm", ["head_features", "head_kernel", "head_bias"], ["head_logits"]),
            helper.make_node("Softmax", ["head_logits"], ["probabilities"], axis=1),
        ]
    )
    del graph.output[:]
    shape = ["N", len(head.bias)]
    graph.output.append(helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, shape))
    onnx.checker.check_model(model)
    onnx.save(model, file)


def _write_saved_model(head: Head, directory: Path) -> None:
    """Write the backbone's signature, as loaded, with the head as a SavedModel that can be called."""
    import tensorflow as tf

    backbone = load_signature()

    class Classifier(tf.Module):  # type: ignore[misc]
        """Backbone and head."""

        def __init__(self) -> None:
            self.backbone = backbone.keep
            self.signature = backbone

        @tf.function(input_signature=[tf.TensorSpec([None, 224, 224, 3], tf.uint8)])
        def __call__(self, pixels: Any) -> Any:
            (embedding,) = self.signature(tf.cast(pixels, tf.float32) / 255.0).values()
            features = tf.math.l2_normalize((embedding - head.scaling.mean) * head.scaling.scale, axis=1)
            return tf.nn.softmax((features @ head.kernel + head.bias) / head.temperature)

    tf.saved_model.save(Classifier(), str(directory))


def main() -> None:
    """Run the command: TensorFlow is thus not loaded in the process that measures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers.model", description=__doc__)
    parser.add_argument("directory", type=Path)
    write(parser.parse_args().directory)


if __name__ == "__main__":
    main()
