"""Export: signatures, templates, the SavedModel in its bundle, TensorFlow Lite."""
