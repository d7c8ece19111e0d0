"""Reinforcement-learning experiments whose robustness results can be trusted.

The command line is `rlx`; from Python, `rlx.train`, `rlx.attack` and `rlx.load` do the same,
`rlx.figure` draws runs, and `rlx.check_agent` and `rlx.check_env` try out your own classes.
"""

import importlib
from typing import TYPE_CHECKING, Any

from rlx.errors import ConfigError, RunError

if TYPE_CHECKING:
    from rlx.api import AttackRun, TrainedRun, attack, check_agent, check_env, figure, load, train

__version__ = "0.1.0"

__all__ = [
    "AttackRun",
    "ConfigError",
    "RunError",
    "TrainedRun",
    "attack",
    "check_agent",
    "check_env",
    "figure",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    """The names above, imported when first asked for: torch takes a second."""
    if name not in __all__:
        raise AttributeError(f"module 'rlx' has no attribute '{name}'")
    return getattr(importlib.import_module("rlx.api"), name)
