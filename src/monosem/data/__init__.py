"""Text: read it, tokenise it, pack it into contexts; the bundled text."""

from monosem.data.documents import Document, read_documents
from monosem.data.packing import ContextBatch, PackedText

__all__ = ["ContextBatch", "Document", "PackedText", "read_documents"]
