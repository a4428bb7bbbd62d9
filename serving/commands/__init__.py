"""The commands that ask a model server, or a bundle. Each imports what is heavy when it runs."""
