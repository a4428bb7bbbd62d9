"""HTML pages of similar photos, with their thumbnails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving import html
from serving.photos.thumbnails import make_thumbnails

THUMBNAIL_PIXELS = 160
"""Width and height of a thumbnail."""

MAX_PICTURES = 400
"""Photos shown at most; each adds some 8 KB to the page."""


@dataclass(frozen=True)
class PhotoGroup:
    """Photos below a heading.

    Attributes:
        title: heading.
        note: sentence below it.
        photos: path or address and cosine of each photo.
    """

    title: str
    note: str
    photos: Sequence[tuple[str, float]]


def build_similar(photo: str, source: str, photos: Sequence[tuple[str, float]]) -> bytes:
    """Return the page of the photos nearest to a photo, as HTML in UTF-8.

    Args:
        photo: path or address of the photo.
        source: what was searched, as the user gave it.
        photos: path or address and cosine of each photo, the nearest first.
    """
    groups = [PhotoGroup("Nearest photos", f"By the cosine of the embeddings, in {source}.", photos)]
    return _build("Similar photos", photo, groups)


def build_clusters(source: str, clusters: Sequence[tuple[str, int, Sequence[tuple[str, float]]]]) -> bytes:
    """Return the page of clusters, as HTML in UTF-8.

    Args:
        source: what was clustered, as the user gave it.
        clusters: name, number of photos, and sample photos with their cosine of each cluster.
    """
    total = sum(count for _, count, _ in clusters)
    groups = [
        PhotoGroup(name, f"{count:,} photos, {count / max(total, 1):.1%}. Nearest to the centre:", samples)
        for name, count, samples in clusters
    ]
    return _build(f"{len(clusters)} clusters of {total:,} photos in {source}", "", groups)


def _build(title: str, photo: str, groups: Sequence[PhotoGroup]) -> bytes:
    uris = [photo] if photo else []
    uris += [uri for group in groups for uri, _ in group.photos]
    pictures = make_thumbnails(list(dict.fromkeys(uris))[:MAX_PICTURES], THUMBNAIL_PIXELS)
    return render(title, photo, groups, pictures).encode()


def render(title: str, photo: str, groups: Sequence[PhotoGroup], pictures: Mapping[str, bytes]) -> str:
    """Return the page as HTML text.

    Args:
        title: heading of the page.
        photo: path or address of the photo in question; "" for none.
        groups: photos.
        pictures: thumbnails (JPEG) by path; a photo without one is shown as text.
    """
    return html.render(
        "batch.report.similar",
        title=title,
        photo=photo,
        groups=groups,
        pictures=pictures,
        side=THUMBNAIL_PIXELS,
    )
