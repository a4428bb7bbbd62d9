"""Labelled photos and their split into training, validation and test.

Photos come from a folder with one directory a label (`scan`), with the sets laid out in it or not,
or from a manifest, a table of photo and label (`scan_manifest`).

The rules of retrain.py that are sound hold: the directory's name is the label, a photo stays
in its set as the folder grows, and photos whose names share what stands before `_nohash_` stay
together. Unlike there, the split hashes the photo's content and not the path as it was spelled,
identical photos count once, and every label has a photo in every set.
"""

from trainer.dataset.dataset import (
    FEW_PHOTOS,
    Example,
    Folder,
    Subset,
    check_label_names,
    contradictions,
    count_labels,
    distinct,
    same_content,
)
from trainer.dataset.folder import scan
from trainer.dataset.manifest import Columns, scan_manifest
from trainer.dataset.split import (
    SplitSettings,
    check_counts,
    check_examples,
    check_folder,
    count_groups,
    gaps,
    group_numbers,
    split,
)

__all__ = [
    "FEW_PHOTOS",
    "Columns",
    "Example",
    "Folder",
    "SplitSettings",
    "Subset",
    "check_counts",
    "check_examples",
    "check_folder",
    "check_label_names",
    "contradictions",
    "count_groups",
    "count_labels",
    "distinct",
    "gaps",
    "group_numbers",
    "same_content",
    "scan",
    "scan_manifest",
    "split",
]
