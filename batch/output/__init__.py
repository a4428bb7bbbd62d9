"""The scores dataset, its schema, run.json and the difference between two runs."""
