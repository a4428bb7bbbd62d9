"""Export: signatures, the SavedModel in its bundle, TensorFlow Lite."""
