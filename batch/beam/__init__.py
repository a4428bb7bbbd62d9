"""The Beam pipeline and the runners that it is known to work on."""
