"""rlx: reinforcement-learning experiments whose robustness results can be trusted."""

__version__ = "0.1.0"
