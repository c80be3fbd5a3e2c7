"""Short hashes of data, by which a run knows again what it reads."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosem.data import Images
from monosem.data.documents import DocumentStream

WHOLE_BYTES = 2**28
SAMPLED_ROWS = 4096


def rows_hash(x: Tensor | np.ndarray) -> str:
    """16 hex digits of shape, type and content; above 256 MiB, of 4,096 rows spread evenly."""
    size = x.nbytes
    digest = hashlib.sha256(f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}".encode())
    chosen = np.linspace(0, max(0, len(x) - 1), SAMPLED_ROWS).astype(np.int64)
    if isinstance(x, Tensor):
        rows = x if size <= WHOLE_BYTES else x[torch.from_numpy(chosen).to(x.device)]
        digest.update(rows.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        digest.update(np.ascontiguousarray(x if size <= WHOLE_BYTES else x[chosen]).tobytes())
    return digest.hexdigest()[:16]


def reader_hash(reader: Any) -> str:
    """16 hex digits of the texts or images that a reader reads; of a stream of texts, of its first window."""
    if isinstance(reader, Images):
        return reader.source_hash
    documents = reader.documents.window(0) if isinstance(reader.documents, DocumentStream) else reader.documents
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps([document.text, [dict(message) for message in document.messages]]).encode())
    return digest.hexdigest()[:16]
