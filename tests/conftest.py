"""Fixtures of all tests, by subject, and the order of their files."""

import pytest

pytest_plugins = ["forks", "sae_fixtures", "shared_fixtures", "small_vit"]

FIRST = (
    "test_examples.py",
    "test_ranks.py",
    "test_killed.py",
    "test_cuda.py",
    "test_server.py",
    "test_killed_evaluation.py",
    "test_page_accessible.py",
    "test_queries.py",
    "test_page.py",
    "test_commands.py",
    "test_several.py",
    "test_runs_on_a_store.py",
    "test_one_pass.py",
    "test_going_on.py",
    "test_layer_norm.py",
    "test_progress.py",
    "test_untrained.py",
    "test_stop.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest is begun first, so that nothing long is left when all else has ended."""
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
