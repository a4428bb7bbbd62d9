"""What is scored: listings, dataset manifests and the columns that are passed through to the scores."""
