"""Conversion of photo formats that the preprocessing graph cannot decode, and thumbnails."""
