"""The commands that serve a model, and that ask one. Each imports what is heavy when it runs."""
