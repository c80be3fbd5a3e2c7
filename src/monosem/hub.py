"""Whether the Hugging Face hub can be reached: asked once, where its libraries try again and again for every file."""

from __future__ import annotations

import importlib
import importlib.util
import os

SECONDS = 10.0


def reachable(name: str, kind: str = "model") -> bool:
    """Whether the hub answers when asked for a model or a "dataset", be it with "there is none"."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().repo_info(name, repo_type=kind, timeout=SECONDS)
    except HfHubHTTPError:
        return True
    except (OSError, ValueError, *_client_errors()):  # no such host, refused, too slow; or HF_HUB_OFFLINE is set
        return False
    return True


def _client_errors() -> tuple[type[Exception], ...]:
    """What the HTTP client of the hub raises: httpx or httpx2; an older one raises kinds of OSError alone."""
    found: list[type[Exception]] = []
    for name in ("httpx", "httpx2"):
        if importlib.util.find_spec(name) is not None:
            client = importlib.import_module(name)
            found += [client.HTTPError, client.InvalidURL]
    return tuple(found)


def offline() -> str:
    """Words for an error, where the user has forbidden to ask the hub."""
    return " (offline: HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
