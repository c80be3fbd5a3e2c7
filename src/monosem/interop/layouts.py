"""All layouts that are read. To add one: write a file like those beside this one, and name its `LAYOUT` here."""

from __future__ import annotations

from monosem.interop import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    kissane,
    neuronpedia,
    openai,
    openmoss,
    qwen_scope,
    saelens,
    sparsify,
    temporal,
)
from monosem.interop.layout import Layout

LAYOUTS: tuple[Layout, ...] = (
    saelens.LAYOUT,
    sparsify.LAYOUT,
    openai.LAYOUT,
    goodfire.LAYOUT,
    kissane.LAYOUT,
    gemma_scope.LAYOUT,
    gemma_scope_2.LAYOUT,
    gemma_scope_2.SEVERAL,
    qwen_scope.LAYOUT,
    openmoss.LAYOUT,
    circuit_tracer.LAYOUT,
    circuit_tracer.CLT_LAYOUT,
    dictionary_learning.LAYOUT,
    neuronpedia.LAYOUT,
    temporal.LAYOUT,
)
"""In this order they are asked whether a place is theirs."""
