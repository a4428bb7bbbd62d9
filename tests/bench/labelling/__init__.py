"""Simulated labelling with true labels: labels needed by each strategy, and suspected label errors."""
