"""rlx <command> [run …] [overrides]: finds the command and hands the rest to Hydra.

Errors become one screen and an exit code.
"""

import atexit
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import rlx
from rlx.command_line import config_overrides, explain, is_of_line, to_hydra, use_conf
from rlx.errors import ConfigError, Interrupted, RunError
from rlx.help import command_usage, commands, example, takes_runs, usage
from rlx.names import nearest

if TYPE_CHECKING:
    from rlx.sweeps.sweep import Sweep

SHELLS = ("bash", "zsh", "fish")
"""The shells whose completion Hydra knows."""


def main() -> None:
    """Console entry point."""
    sys.unraisablehook = _not_lost
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # closed when the program began, as in: rlx … >&-
            continue
        try:
            stream.flush()
        except BrokenPipeError:
            pass
        except OSError:  # a full disk: what was printed is lost
            code = code or 1
    # As Python does: pools of processes tell their workers to end when threads shut down, and the
    # hooks behind that wait for them.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    # Without what Python would tear down besides: of torch above all, that takes seconds.
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
    try:
        return _run(arguments)
    except (ConfigError, RunError, Interrupted) as error:
        print(f"rlx: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("rlx: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # as in: rlx … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _run(arguments: list[str]) -> int:
    """Find what a command line asks for, and do it; returns the exit code."""
    known = commands()
    if "-sc" in arguments and "COMP_LINE" in os.environ:
        return _complete(arguments, known)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    command, *words = arguments
    if command == "--version":
        print(f"rlx {rlx.__version__}")
        return 0
    if command == "--completion":
        return _install_completion(words)
    if command not in known:
        raise ConfigError(f"rlx {command}: unknown command.{nearest(command, known)}")
    if command == "resume" and not {"-h", "--help"} & set(words):
        from rlx.sweeps.sweep import Sweep

        for word in words:
            if Sweep.is_at(word):
                return _go_on(Sweep(Path(word)), [other for other in words if other != word])
    line = to_hydra(command, words)
    if {"-h", "--help"} & set(words):
        return _help(command, line)
    if any(word.startswith("run=[") for word in line) and not takes_runs(command):
        raise ConfigError(
            f"rlx {command}: takes no run; write key=value, as in: {example(command)}"
        )
    return _hydra(command, line)


def _install_completion(arguments: list[str]) -> int:
    """Print what a shell must evaluate to complete rlx's command lines."""
    from rlx.config import choice

    shell = arguments[0] if arguments else "bash"
    code = _hydra("train", ["-sc", f"install={choice(shell, SHELLS, '--completion')}"])
    if shell == "bash":
        # Else bash would complete what stands behind the colon, as in zoo:dqn-cartpole, by itself.
        print("COMP_WORDBREAKS=${COMP_WORDBREAKS//:}")
    return code


def _help(command: str, line: list[str]) -> int:
    """Print a command's help; where its line is wrong, what is wrong with it."""
    from hydra.errors import HydraException

    try:
        print(command_usage(command, config_overrides(line)))
    except (HydraException, ValueError) as error:
        return _fail(explain(error, command, line))
    return 0


def _go_on(sweep: "Sweep", words: list[str]) -> int:
    """Go on with a sweep, with more `words` than it was begun with; returns the exit code."""
    from rlx.sweeps.running import go_on

    line = to_hydra(sweep.command, words)
    use_conf(sweep.words)
    return _hydra(sweep.command, line, lambda: go_on(sweep, line))


def _hydra(command: str, line: list[str], act: Callable[[], None] | None = None) -> int:
    """Run a command on Hydra's command line; returns the exit code.

    `act`: what to do instead of the command.
    """
    if not {"-c", "--cfg", "-i", "--info", "--hydra-help"} & set(line):
        _show_start()
    # Hydra raises its errors then, instead of printing them, and they are explained here.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Completion is installed for the program rlx.
    program = "rlx" if "-sc" in line else f"rlx {command}"
    sys.argv = [program, *line]
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, _told_to_stop)
    try:
        (act or importlib.import_module(f"rlx.commands.{command}").main)()
    except (HydraException, OmegaConfBaseException) as error:
        return _fail(explain(error, command, line))
    except ValueError as error:
        if not is_of_line(error, line):
            raise
        return _fail(explain(error, command, line))
    except SystemExit as done:  # Hydra's own help and completion
        return int(done.code or 0)
    return 0


def _show_start() -> None:
    """Show a terminal that a command begins, which it overwrites with its first line.

    That may take seconds: of most commands, torch's import comes before it.
    """
    if sys.stdout is not None and sys.stdout.isatty():
        print("starting", end="\r", flush=True)


def _told_to_stop(number: int, frame: object) -> None:
    """SIGTERM ends every command as Ctrl-C does, so that what it was writing says so."""
    raise Interrupted(number, "stopped by SIGTERM")


def _not_lost(lost: "sys.UnraisableHookArgs") -> None:
    """Let a signal come once more that came within a destructor, where Python ignores errors."""
    error = lost.exc_value
    if not isinstance(error, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    number = error.number if isinstance(error, Interrupted) else signal.SIGINT
    # Not at once: the destructor is not over.
    threading.Timer(0.1, os.kill, (os.getpid(), number or signal.SIGINT)).start()


def _fail(message: str) -> int:
    """Print an error of the command line or the config; returns its exit code."""
    print(f"rlx: {message}", file=sys.stderr)
    return 2


def _complete(arguments: list[str], known: dict[str, str]) -> int:
    """Print what a line may go on with, for the shell's tab key.

    The names of commands are completed here, and the paths of runs. All else is completed by Hydra,
    which is shown the line without the command.
    """
    line = os.environ["COMP_LINE"]
    words = line.split()
    if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
        prefix = words[1] if len(words) > 1 else ""
        print("\n".join(name for name in known if name.startswith(prefix)))
        return 0
    command = words[1]
    if command not in known:
        return 0
    word = "" if line.endswith(" ") else words[-1]
    if takes_runs(command) and "=" not in word:
        from rlx.runs.finding import completions

        outputs = [key.removeprefix("outputs=") for key in words if key.startswith("outputs=")]
        print("\n".join(completions(word, [*outputs, "outputs"][0])))
        if "/" in word or ":" in word:
            return 0
    flags = use_conf(words)
    shorter = line.replace(f"{command} ", "", 1)
    cursor = int(os.environ.get("COMP_POINT", len(line)))
    os.environ["COMP_POINT"] = str(cursor - (len(line) - len(shorter)))
    os.environ["COMP_LINE"] = shorter
    return _hydra(command, [*flags, *arguments])
