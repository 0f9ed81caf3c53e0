"""``sona serve``: an engine behind HTTP, which OpenAI clients can ask.

It needs the packages of the extra ``server``; :func:`check_extra` says so where they are missing.
"""

from __future__ import annotations

from importlib.util import find_spec

from sona.errors import ExtraMissingError

PACKAGES = ("starlette", "uvicorn", "prometheus_client")


def check_extra() -> None:
    """Raises ExtraMissingError where a package of the extra is not installed."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ExtraMissingError(f"{', '.join(missing)}: not installed; pip install 'sona[server]'")
