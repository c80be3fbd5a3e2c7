"""Fixtures of the tests of features."""

from small_store import made, small_model

__all__ = ["made", "small_model"]
