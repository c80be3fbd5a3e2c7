"""Sparse feature circuits: which features make a number, and how much of it few of them keep."""
