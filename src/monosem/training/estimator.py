"""SklearnSAE: an SAE behind the interface of scikit-learn, which is not needed for it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from monosem.arguments import checked
from monosem.codes import SparseCodes
from monosem.errors import ConfigError, DataError
from monosem.sae import SAE
from monosem.training.run import fit

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray

ROWS = 8192
"""Encoded at a time."""


class SklearnSAE:
    """An SAE for arrays: `fit`, `transform`, `inverse_transform`, alone or as a step of a scikit-learn pipeline.

    features = ms.SklearnSAE(ms.TopKSAE(d_in=64, n_latents=512, k=16)).fit_transform(x)
    features = ms.SklearnSAE(ms.load_sae("my_sae")).transform(x)

    `transform` gives codes as a sparse matrix of scipy, (rows, n_latents), which scikit-learn's estimators take.
    """

    @checked
    def __init__(self, sae: SAE, tokens: int | None = None) -> None:
        """Wrap an SAE.

        Args:
            sae: trained, or to be trained: `fit` trains a copy, `sae_`.
            tokens: rows that `fit` trains on, with repetition; if not given as many as there are, at least 1,000,000.
        """
        self.sae, self.tokens = sae, tokens

    def fit(self, X: NDArray[Any], y: object = None) -> Self:
        """Train a copy of the SAE on rows (n, d_in); y is ignored."""
        del y
        trained = copy.deepcopy(self.sae)
        fit(trained, _rows(X, trained), tokens=self.tokens, progress=False)
        self.sae_ = trained
        return self

    @torch.no_grad()
    def transform(self, X: NDArray[Any]) -> Any:
        """The codes of rows (n, d_in), as a `scipy.sparse.csr_matrix` (n, n_latents)."""
        from scipy.sparse import csr_matrix

        sae = self._fitted
        rows = _rows(X, sae)
        parts = [sae.encode(part.to(sae.W_enc)) for part in rows.split(ROWS)] if len(rows) else [sae.encode(rows)]
        counts = torch.cat([part.offsets.diff() for part in parts]).cumsum(0)
        offsets = np.concatenate([[0], counts.cpu().numpy()])
        values, indices = (torch.cat([getattr(part, name) for part in parts]) for name in ("values", "indices"))
        found: Any = csr_matrix(
            (values.cpu().numpy(), indices.cpu().numpy(), offsets), shape=(len(rows), sae.n_latents)
        )
        found.eliminate_zeros()
        found.sort_indices()
        return found

    def fit_transform(self, X: NDArray[Any], y: object = None) -> Any:
        """As `fit`, then `transform`."""
        return self.fit(X, y).transform(X)

    @torch.no_grad()
    def inverse_transform(self, X: Any) -> NDArray[Any]:
        """Reconstructions (n, d_out) of codes, sparse or not."""
        from scipy.sparse import csr_matrix

        codes: Any = csr_matrix(X)
        sae = self._fitted
        if codes.shape[1] != sae.n_latents:
            raise DataError(f"this SAE has {sae.n_latents} latents, the codes are of {codes.shape[1]}")
        values, indices, offsets = (
            torch.from_numpy(np.asarray(part)) for part in (codes.data, codes.indices, codes.indptr)
        )
        device = sae.W_enc.device
        given = SparseCodes(
            values.to(sae.W_enc), indices.int().to(device), offsets.long().to(device), sae.n_latents, (codes.shape[0],)
        )
        return sae.decode(given).cpu().numpy()

    def get_feature_names_out(self, input_features: object = None) -> NDArray[Any]:
        """`latent0`, `latent1`, ..."""
        del input_features
        return np.array([f"latent{number}" for number in range(self._fitted.n_latents)], dtype=object)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments."""
        del deep
        return {"sae": self.sae, "tokens": self.tokens}

    def set_params(self, **parameters: Any) -> Self:
        """Change the constructor's arguments.

        Raises:
            ConfigError: there is none of that name.
        """
        for name, value in parameters.items():
            if name not in self.get_params():
                raise ConfigError(f"SklearnSAE has no parameter {name!r}: it has sae and tokens")
            setattr(self, name, value)
        return self

    @property
    def _fitted(self) -> SAE:
        return getattr(self, "sae_", self.sae)

    def __sklearn_tags__(self) -> Any:
        """Asked by scikit-learn alone."""
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags  # pyright: ignore[reportMissingImports]

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(),
            input_tags=InputTags(),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "sae_") or self.sae.transform.fitted

    def __repr__(self) -> str:
        return f"SklearnSAE({type(self.sae).__name__}(d_in={self.sae.d_in}, n_latents={self.sae.n_latents}))"


def _rows(X: Any, sae: SAE) -> torch.Tensor:
    if len(sae.in_shape) > 1 or not sae.autoencodes:
        raise ConfigError(f"a {sae.architecture} of several places is none for rows of one: use sae.encode(x)")
    rows = torch.from_numpy(np.ascontiguousarray(X)) if not isinstance(X, torch.Tensor) else X
    if rows.ndim != 2 or rows.shape[1] != sae.d_in:
        raise DataError(f"this SAE reads rows of width {sae.d_in}, got an array of shape {tuple(rows.shape)}")
    return rows.float() if not rows.is_floating_point() else rows
