"""Dictionaries of other libraries: reading and writing their files, and the catalogue of those that are published."""

from monosem.interop.catalogue import Catalogue, PublishedSAE, catalogue, published
from monosem.interop.export import export_sae

__all__ = ["Catalogue", "PublishedSAE", "catalogue", "export_sae", "published"]
