"""Fixtures of the tests of explanations."""

from chat_server import chat
from planted import planted

__all__ = ["chat", "planted"]
