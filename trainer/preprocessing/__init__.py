"""Preprocessing as TensorFlow ops: encoded photos in, upright pixels and a status per photo out.

This package is the only place of hubhead that decodes or resizes photos. Its ops are part of the
SavedModel, so training, batch scoring, the local server and TensorFlow Serving get the same pixels.

A bad photo never fails the call or affects other photos of the batch. Two guards ensure that:

* Before a photo is decoded, its header is checked against the limits (`limits`). A decompression
  bomb uses up time and memory before it fails, so catching the error would be too late.
* All other errors are caught: the photos run through a tf.data pipeline inside the graph with
  `ignore_errors`, each with its row number, and are scattered back into a blank batch (`decode`).
  A missing row is a photo that did not decode. This also works in the TF1-style session of
  TensorFlow Serving, where one failing op fails every request of a merged batch.

Each format has a module that reads its header: `jpeg`, `png`, `gif`, `bmp`, `webp`. `resize`
resizes the decoded pixels and applies the orientation.

Some ops and attributes must not be used here, since each was seen to hang or crash the process in
TensorFlow 2.21: `try_recover_truncated=True`, `decode_image(channels=0)`, a `ratio` above 1
before the dimensions were checked, and `decode_jpeg` on bytes without a JPEG signature.
"""

from trainer.preprocessing.augment import Augmentation, random_views
from trainer.preprocessing.decode import decode_photos, is_usable, status_names
from trainer.preprocessing.settings import STATUSES, VERSION, Aspect, Preprocessing

__all__ = [
    "STATUSES",
    "VERSION",
    "Aspect",
    "Augmentation",
    "Preprocessing",
    "decode_photos",
    "is_usable",
    "random_views",
    "status_names",
]
