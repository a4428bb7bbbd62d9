"""Labelled photos and their split into training, validation and test.

Photos come from a folder with one directory per label, with or without predefined sets, or from a
dataset manifest, a table with one row per photo and label. `scan` lists them for a training, and
`list_photos` for an evaluation, where labels may be missing.

Three rules of retrain.py are kept: the directory's name is the label, a photo stays in its set as
the folder grows, and photos whose names share the part before `_nohash_` stay together. Unlike in
retrain.py, the split hashes the photo's content rather than the spelled path, identical photos
count once, and every label has a photo in every set.
"""

from trainer.dataset.dataset import (
    DatasetListing,
    Example,
    LabelledPhoto,
    Subset,
    count_labels,
    describe_conflicting_labels,
    select_distinct,
)
from trainer.dataset.labelled_photos import list_photos, scan
from trainer.dataset.manifest import Columns
from trainer.dataset.split import (
    SplitSettings,
    assign_groups,
    check_examples,
    check_listing,
    describe_missing_labels,
    split,
)

__all__ = [
    "Columns",
    "DatasetListing",
    "Example",
    "LabelledPhoto",
    "SplitSettings",
    "Subset",
    "assign_groups",
    "check_examples",
    "check_listing",
    "count_labels",
    "describe_conflicting_labels",
    "describe_missing_labels",
    "list_photos",
    "scan",
    "select_distinct",
    "split",
]
