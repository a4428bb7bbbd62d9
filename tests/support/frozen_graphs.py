"""Frozen graphs of TensorFlow 1, like that of Inception of 2015."""

from __future__ import annotations

from pathlib import Path

import numpy as np

KERNEL = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
MEAN, VARIANCE, BETA, GAMMA = (np.array([0.1, -0.2, 0.3, 0.4], np.float32) * n + n for n in (1, 2, 3, 4))
EPSILON = 0.001


def write_graph(file: Path, *, scales: bool = True, frozen: bool = True) -> str:
    """Write a graph like that of Inception of 2015, with 16 x 12 pixels and one convolution.

    The names of its tensors are those of Inception. It has the batch normalisation of its time, takes a JPEG
    in a batch of one, and records its version and shapes.

    Args:
        file: file to write.
        scales: whether the normalisation multiplies by gamma.
        frozen: whether the kernel is a constant.
    """
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default() as built:
        contents = v1.placeholder(tf.string, [], "DecodeJpeg/contents")
        decoded = tf.cast(tf.io.decode_jpeg(contents, channels=3, name="DecodeJpeg"), tf.float32, name="Cast")
        resized = v1.image.resize_bilinear(tf.expand_dims(decoded, 0, name="ExpandDims"), [16, 12])
        shifted = tf.subtract(tf.identity(resized, "Resized"), 128.0, name="Sub")
        scaled = tf.multiply(shifted, 1 / 128, name="Mul")
        kernel = tf.constant(KERNEL[None, None], name="kernel")
        if not frozen:
            kernel = v1.get_variable("variable", initializer=KERNEL[None, None], use_resource=False)
        tf.nn.conv2d(scaled, kernel, 1, "SAME", name="conv")
        rate = v1.placeholder(tf.float32, [], "rate")
        tf.reduce_mean(tf.multiply(scaled, rate), [1, 2], name="with_rate")
        for name, value in zip(
            ("mean", "variance", "beta", "gamma"), (MEAN, VARIANCE, BETA, GAMMA), strict=True
        ):
            tf.constant(value, name=name)
        tf.nn.relu(v1.placeholder(tf.float32, [None, 16, 12, 4], "normalised"), name="relu")
        tf.nn.avg_pool2d(built.get_tensor_by_name("relu:0"), [16, 12], [1, 1], "VALID", name="pool_3")
        tf.reshape(built.get_tensor_by_name("pool_3:0"), [1, 4], name="pool_3/_reshape")
        graph = built.as_graph_def(add_shapes=True)
    (node,) = (node for node in graph.node if node.name == "normalised")
    node.Clear()
    node.name, node.op = "normalised", "BatchNormWithGlobalNormalization"
    node.input.extend(["conv", "mean", "variance", "beta", "gamma"])
    node.attr["T"].type = tf.float32.as_datatype_enum
    node.attr["variance_epsilon"].f = EPSILON
    node.attr["scale_after_normalization"].b = scales
    graph.versions.producer = 8
    file.write_bytes(graph.SerializeToString())
    return str(file)
