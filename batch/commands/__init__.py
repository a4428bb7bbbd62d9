"""The batch commands: score, rescore, embeddings and query."""
