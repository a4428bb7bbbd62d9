"""Configuration of the server: flags, settings and the configuration files of TensorFlow Serving."""
