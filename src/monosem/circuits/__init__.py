"""Circuits: how features, heads and tokens make each other and what a model says."""
