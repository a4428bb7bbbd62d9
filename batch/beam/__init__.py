"""The Beam pipeline, and checks of the runners that it supports."""
