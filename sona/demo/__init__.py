"""An agent that learns from its own use, from beginning to end, in about a minute: what ``sona demo`` runs."""

from sona.demo.options import DemoOptions, DemoSize
from sona.demo.result import DemoResult
from sona.demo.run import run_demo

__all__ = ["DemoOptions", "DemoResult", "DemoSize", "run_demo"]
