"""Classes of pixels: a linear head on patch tokens."""
