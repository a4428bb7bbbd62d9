"""Commands of the trainer: train, export, backbone, validate, compare and demo."""
