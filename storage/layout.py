"""What the files in a store's folder are called."""

from __future__ import annotations

DATABASE = "store.db"
LOCK = "store.lock"
LEARNER_LOCK = "learner.lock"
"""Held by the process that learns, beside the writer's."""
VERSIONS = "versions"
TRAINING = "training"
"""The folder of full-weight training: its jobs, its checkpoints."""
REBUILDING = f"{DATABASE}.rebuilding"
"""What a repair is making; of no use once it was cut short."""
REBUILT = f"{DATABASE}.rebuilt"
"""What a repair has made, and is about to put in the place of the database."""
DAMAGED = f"{DATABASE}.damaged-"
"""Before a number: the databases that repairs have replaced."""
QUARANTINE = "quarantine"
"""The folder of what repairs have set aside."""
