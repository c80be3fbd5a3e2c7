"""Stitching: how a large dictionary of activations differs from a small one of the same, latent by latent."""
