"""Commands that serve, query and deploy a model. Heavy imports happen when a command runs."""
