"""Pictures of the documents, taken in headless Chromium from real runs on drawn photos."""
