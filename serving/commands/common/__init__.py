"""Code that all commands share: their class, configuration files, and shell completion."""
