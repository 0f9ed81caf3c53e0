"""What is done of the bank once in many cycles, as it looks at everything."""

from __future__ import annotations

from sona.bank.bank import Bank
from sona.config import BankConfig

FEWEST = 3
"""Patterns; fewer need no families."""


def deepened(bank: Bank, settings: BankConfig, cycle: int) -> Bank:
    """``bank`` with families, where it is time for them or every second pattern has none yet; else itself."""
    without = sum(not pattern.family for pattern in bank.patterns)
    due = cycle % settings.families_every == 0 or 2 * without >= len(bank.patterns)
    return bank.with_families() if due and len(bank.patterns) >= FEWEST else bank
