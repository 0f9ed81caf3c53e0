"""The ``sona`` command, and ``python -m sona``: light enough that a Ctrl-C finds it ready."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """As :func:`sona.cli.main`; a Ctrl-C while its modules are imported ends it too, with exit code 130."""
    try:
        from sona import cli

        cli.main()
    except KeyboardInterrupt:  # nothing had begun, so there is nothing to say
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # one that comes while the interpreter ends has nothing to say


if __name__ == "__main__":
    main()
