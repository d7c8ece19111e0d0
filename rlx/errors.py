"""What can be wrong.

    Exception
      ConfigError          the user asked for something impossible      exit code 2
      RunError             a run cannot go on                           exit code 1
    KeyboardInterrupt
      Interrupted          somebody told rlx to stop                    exit code 128 + the signal

The command line prints their messages without a traceback; anything else that is raised is a fault
of rlx's. This file imports nothing of rlx, so that every other file can import it.
"""

import signal


class ConfigError(Exception):
    """The user asked for something impossible; the message says what, where, and what would do."""

    code = 2


class RunError(Exception):
    """A run cannot go on; the message says why."""

    code = 1
    copy: int | None = None
    """Which of the copies of an env raised it, or returned what is wrong; None: nobody knows."""


class Interrupted(KeyboardInterrupt):
    """A signal told rlx to stop: no failure, and nothing that stands behind it is begun.

    It is no Exception, so that Hydra's sweeps end with it too.
    """

    def __init__(self, number: int, message: str):
        """`number`: the signal's; 0, where none came, counts as SIGINT."""
        super().__init__(number, message)  # both: a pool of processes sends it by pickle
        self.number = number
        self.code = 128 + (number or signal.SIGINT)

    def __str__(self) -> str:
        return str(self.args[1])
