"""Labelled photos and their split into training, validation and test.

Photos come from a folder with one directory per label, with or without predefined sets (`scan`),
or from a dataset manifest, a table with one row per photo and label (`scan_manifest`).

Three rules of retrain.py are kept: the directory's name is the label, a photo stays in its set as
the folder grows, and photos whose names share the part before `_nohash_` stay together. Unlike in
retrain.py, the split hashes the photo's content rather than the spelled path, identical photos
count once, and every label has a photo in every set.
"""

from trainer.dataset.dataset import (
    FEW_PHOTOS,
    DatasetListing,
    Example,
    Subset,
    check_label_names,
    count_labels,
    describe_conflicting_labels,
    group_identical,
    select_distinct,
)
from trainer.dataset.folder import scan
from trainer.dataset.manifest import Columns, scan_manifest
from trainer.dataset.split import (
    SplitSettings,
    assign_groups,
    check_counts,
    check_examples,
    check_listing,
    count_groups,
    describe_missing_labels,
    split,
)

__all__ = [
    "FEW_PHOTOS",
    "Columns",
    "DatasetListing",
    "Example",
    "SplitSettings",
    "Subset",
    "assign_groups",
    "check_counts",
    "check_examples",
    "check_label_names",
    "check_listing",
    "count_groups",
    "count_labels",
    "describe_conflicting_labels",
    "describe_missing_labels",
    "group_identical",
    "scan",
    "scan_manifest",
    "select_distinct",
    "split",
]
