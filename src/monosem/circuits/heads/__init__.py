"""Attention heads: what each does, by its scores, its weights and the features that it reads and writes."""
