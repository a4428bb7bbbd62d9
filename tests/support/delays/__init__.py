"""Directory for PYTHONPATH: its sitecustomize delays the steps of a scoring run."""
