"""Fixtures of the tests of explanations."""

from chat_server import chat
from planted import planted
from ruled import ruled

__all__ = ["chat", "planted", "ruled"]
