"""The commands of trainer: train, export, backbone, validate, compare and demo."""
