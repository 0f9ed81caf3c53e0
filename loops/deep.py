"""What is done of the bank once in many cycles, as it looks at everything."""

from __future__ import annotations

from sona.bank.bank import Bank
from sona.config import BankConfig

FEWEST = 3
"""Patterns; fewer need no families."""


def deepened(bank: Bank, settings: BankConfig, cycle: int) -> Bank:
    """``bank`` with families, where it is time for them or there are none yet; else itself."""
    due = cycle % settings.families_every == 0 or not any(pattern.family for pattern in bank.patterns)
    return bank.with_families() if due and len(bank.patterns) >= FEWEST else bank
