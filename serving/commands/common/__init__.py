"""Code that all commands share: their class with the common options, configuration files, and shell completion."""
