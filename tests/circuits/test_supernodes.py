"""Groups of features: found where they were put, whatever the order of the nodes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from monosem.circuits.graph.supernodes import clusters, similarity

ROLES, EACH, TOKENS = 3, 4, 6


def planted(seed: int, noise: float) -> tuple[np.ndarray, list[int]]:
    """Edges (features and one target, all nodes) of features of three roles, and each feature's role.

    Features of role r get from token r and give to one later feature; the nodes are the features, a later feature for
    each role, and the tokens.
    """
    rng = np.random.default_rng(seed)
    n = ROLES * EACH
    roles = rng.permutation(np.repeat(np.arange(ROLES), EACH))
    edges = np.zeros((n + ROLES, n + ROLES + TOKENS))
    for i, role in enumerate(roles):
        edges[i, n + ROLES + role] = 1
        edges[n + role, i] = -1 if role == 2 else 1
    return edges + noise * rng.normal(size=edges.shape) * (edges == 0), roles.tolist()


@pytest.mark.parametrize("seed", [0, 1])
def test_planted_roles_are_found(seed: int) -> None:
    edges, roles = planted(seed, 0.02)
    n = len(roles)
    found = clusters(similarity(csr_matrix(edges), range(n), np.ones(len(edges))), 0.5)
    assert sorted(sorted(members) for members in found) == sorted(
        [i for i in range(n) if roles[i] == role] for role in range(ROLES)
    )


def test_similarity_is_that_of_plain_loops() -> None:
    edges, roles = planted(3, 0.3)
    weights = np.linspace(0.1, 1, len(edges))
    shares = edges / np.abs(edges).sum(1, keepdims=True)
    wanted = np.zeros((len(roles), len(roles)))
    for i in range(len(roles)):
        for j in range(len(roles)):
            for a, b in ((shares[i], shares[j]), (shares[:, i] * weights, shares[:, j] * weights)):
                wanted[i, j] += a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) / 2
    found = similarity(csr_matrix(edges), range(len(roles)), weights)
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    np.testing.assert_allclose(np.diag(found), 1, atol=1e-9)


def test_a_sign_keeps_features_apart() -> None:
    edges = np.zeros((3, 4))
    edges[0, 3] = edges[1, 3] = 1  # the same token makes both ...
    edges[2, 0], edges[2, 1] = 1, -1  # ... and they do the opposite
    alike = similarity(csr_matrix(edges), [0, 1], np.ones(3))
    assert alike[0, 1] == pytest.approx(0, abs=1e-6)
    assert clusters(alike, 0.5) == []


def test_every_two_members_are_alike() -> None:
    chain = np.eye(4)  # each is like the next, the first not like the last
    for i in range(3):
        chain[i, i + 1] = chain[i + 1, i] = 0.8
    assert sorted(map(sorted, clusters(chain, 0.5))) == [[0, 1], [2, 3]]
    assert clusters(np.eye(1), 0.5) == []
