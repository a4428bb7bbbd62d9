"""Pages of thumbnails of `hubhead similar`: the nearest photos, or clusters."""

from batch.report.similar.page import build_clusters, build_similar

__all__ = ["build_clusters", "build_similar"]
