"""Conversion of photo formats that the preprocessing graph does not decode, and thumbnails."""
