"""A folder of labelled photos in, a bundle for TensorFlow Serving out."""
