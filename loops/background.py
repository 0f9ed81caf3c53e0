"""The background loop: a cycle every hour, for as long as the host lives."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

import anyio

from sona.errors import SwapError
from sona.types import CycleReport

log = logging.getLogger("sona.background")

MAX_BACKOFF = 32  # after failures the wait doubles up to so many intervals


async def run_forever(learn: Callable[[], Awaitable[CycleReport]], interval_s: float) -> None:
    """Call ``learn`` every ``interval_s`` seconds until cancelled.

    A cycle that fails is logged and tried again later, each time after twice the wait: it never ends the host's loop.
    """
    failures = 0
    while True:
        began = time.monotonic()
        try:
            report = await learn()
        except SwapError:
            failures += 1
            log.exception("a cycle published, and its version can't be served; the next cycle is tried later")
        except Exception:  # out of memory, a full disk, a fault of ours: none of it may end the host
            failures += 1
            log.exception("cycle failed, %d in a row; it is tried again", failures)
        else:
            failures = 0
            log.info("cycle %d %s: %s", report.cycle, report.status, report.reason)
        wait_s = interval_s * min(2**failures, MAX_BACKOFF) if failures else interval_s
        await anyio.sleep(max(wait_s - (time.monotonic() - began), 0.0))
