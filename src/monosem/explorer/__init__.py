"""The explorer: feature stores as a page and as an HTTP API."""

from monosem.explorer.alone import Alone
from monosem.explorer.dictionary import Dictionary, open_dictionaries
from monosem.explorer.export import export_feature, export_site
from monosem.explorer.names import is_loopback
from monosem.explorer.server import PORT, open_browser, serve

__all__ = [
    "PORT",
    "Alone",
    "Dictionary",
    "export_feature",
    "export_site",
    "is_loopback",
    "open_browser",
    "open_dictionaries",
    "serve",
]
