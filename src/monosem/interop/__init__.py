"""Dictionaries of other libraries: reading their files, and the catalogue of those that are published."""

from monosem.interop.catalogue import Catalogue, PublishedSAE, catalogue, published

__all__ = ["Catalogue", "PublishedSAE", "catalogue", "published"]
