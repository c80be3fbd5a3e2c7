"""Text and images: read them, tokenise and pack them into contexts; the bundled text."""

from monosem.data.batch import Batch, BatchReader, ReadAhead, kept_positions
from monosem.data.documents import Document, Documents, DocumentStream
from monosem.data.images import ImageBatch, Images
from monosem.data.packing import ContextBatch, PackedText
from monosem.data.reading import read_documents

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
    "kept_positions",
    "read_documents",
]
