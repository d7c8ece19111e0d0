"""The program rlx, and python -m rlx."""

import signal
import sys


def main() -> None:
    """Import the command line and do what it says.

    Python imports for a while, and is not to answer Ctrl-C with where it was.
    """
    try:
        from rlx.cli import main as do
    except KeyboardInterrupt:
        print("rlx: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    do()


if __name__ == "__main__":
    main()
