"""Text and images: read them, tokenise and pack them into contexts; the bundled text."""

from monosem.data.batch import Batch, BatchReader, ReadAhead, kept_positions
from monosem.data.documents import Document, Documents, DocumentStream, read_documents
from monosem.data.images import ImageBatch, Images
from monosem.data.packing import ContextBatch, PackedText, first_token

__all__ = [
    "Batch",
    "BatchReader",
    "ContextBatch",
    "Document",
    "DocumentStream",
    "Documents",
    "ImageBatch",
    "Images",
    "PackedText",
    "ReadAhead",
    "first_token",
    "kept_positions",
    "read_documents",
]
