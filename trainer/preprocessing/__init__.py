"""THE preprocessing: photo bytes in, upright pixels and a status out, as TensorFlow ops.

The only place of hubhead that decodes or resizes. It travels inside the SavedModel, so
training, batch, the local server and stock TensorFlow Serving see the same pixels.

A photo never fails the call, nor its neighbours. Two guards see to that:

* Before anything is decoded, the header is held against the limits (`guard`): a decompression
  bomb costs its time and memory before it fails, so no catch helps against it.
* The rest is caught: the photos run through a tf.data pipeline inside the graph with
  `ignore_errors`, each with its row number, and are scattered back into a blank batch (`batch`).
  A row that is missing did not decode. This holds in the classic session that TensorFlow
  Serving runs, where one failing op fails every caller of a merged batch.

Each format has a module that reads its header: `jpeg`, `png`, `gif`, `bmp`, `webp`. What they
decode is resized and turned upright by `fit`.

Ops and attributes that are never used here, each seen to hang or crash the process in
TensorFlow 2.21: `try_recover_truncated=True`, `decode_image(channels=0)`, a `ratio` above 1
before the dimensions were checked, `decode_jpeg` on bytes that do not begin as a JPEG.
"""

from trainer.preprocessing.augment import Augmentation, random_views
from trainer.preprocessing.decode import decode_photos, status_names, usable
from trainer.preprocessing.settings import STATUSES, VERSION, Aspect, Preprocessing

__all__ = [
    "STATUSES",
    "VERSION",
    "Aspect",
    "Augmentation",
    "Preprocessing",
    "decode_photos",
    "random_views",
    "status_names",
    "usable",
]
