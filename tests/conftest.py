"""Fixtures of all tests, by subject."""

pytest_plugins = ["sae_fixtures", "shared_fixtures", "small_vit"]
