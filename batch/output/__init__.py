"""Output of scoring runs: the scores dataset, its schema, run.json and the difference between runs."""
