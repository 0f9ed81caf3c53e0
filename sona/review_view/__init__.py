"""The review in the terminal, and the ways from there to the candidates. Needs the extra ``tui``, but for the store's
own.
"""

from __future__ import annotations

from importlib.util import find_spec

from sona.errors import ExtraMissingError

PACKAGES = ("textual", "httpx")


def check_extra() -> None:
    """Raises ExtraMissingError where a package of the extra is not installed."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ExtraMissingError(f"{', '.join(missing)}: not installed; pip install 'sona[tui]'")
