"""Gate before a release: parity of all inference paths, regression limits, and the verdict."""
