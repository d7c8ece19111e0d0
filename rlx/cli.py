"""rlx <command> [run …] [overrides]: finds the command and hands the rest to Hydra.

Errors become one screen and an exit code.
"""

import atexit
import importlib
import itertools
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import rlx
from rlx import conf
from rlx.errors import ConfigError, Interrupted, RunError
from rlx.help import all_keys, command_usage, commands, own_keys, takes_runs, usage
from rlx.names import closest, nearest

QUIET = (
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra.output_subdir=null",
    "hydra.run.dir=.",
    "hydra.sweep.dir=outputs/sweeps/${now:%Y%m%d-%H%M%S-%f}",
    "hydra.sweep.subdir=.",
)
"""rlx makes its own run directories and messages; Hydra only composes."""

FLAGS = (
    "-m",
    "--multirun",
    "-r",
    "--run",
    "-h",
    "--help",
    "--hydra-help",
    "--resolve",
    "--version",
)
"""Hydra's flags that stand alone."""
WITH_VALUE = (
    "-cd",
    "--config-dir",
    "-cn",
    "--config-name",
    "-cp",
    "--config-path",
    "-c",
    "--cfg",
    "-i",
    "--info",
    "-p",
    "--package",
    "-sc",
)
"""Hydra's flags that stand before a value."""

SHELLS = ("bash", "zsh", "fish")
"""Those whose completion Hydra knows."""


def main() -> None:
    """Console entry point."""
    code = run(sys.argv[1:])
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(code)  # what Python would tear down besides, torch above all, takes seconds


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
    try:
        return _run(arguments)
    except ConfigError as error:
        return _fail(str(error))
    except BrokenPipeError:  # as in: rlx … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _run(arguments: list[str]) -> int:
    known = commands()
    if "-sc" in arguments and "COMP_LINE" in os.environ:
        return _complete(arguments, known)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    command, *rest = arguments
    if command == "--version":
        print(f"rlx {rlx.__version__}")
        return 0
    if command == "--completion":
        return _install_completion(rest)
    if command not in known:
        raise ConfigError(f"rlx {command}: unknown command.{nearest(command, known)}")
    line = to_hydra(command, rest)
    if {"-h", "--help"} & set(rest):
        return _help(command, line)
    if any(word.startswith("run=[") for word in line) and not takes_runs(command):
        raise ConfigError(
            f"rlx {command}: takes no run; write key=value, as in: rlx {command} agent=dqn"
        )
    return _hydra(command, line)


def _install_completion(arguments: list[str]) -> int:
    """Print what a shell must evaluate to complete rlx's command lines."""
    from rlx.config import choice

    shell = arguments[0] if arguments else "bash"
    return _hydra("train", ["-sc", f"install={choice(shell, SHELLS, '--completion')}"])


def _help(command: str, line: list[str]) -> int:
    """Print a command's help; where its line is wrong, what is wrong with it."""
    from hydra.errors import HydraException

    try:
        print(command_usage(command, _overrides(line)))
    except (HydraException, ValueError) as error:
        return _fail(explain(error, command, line))
    return 0


def _overrides(line: list[str]) -> list[str]:
    """The words of a command line for Hydra that say what the config is."""
    words = []
    for word in line:
        is_paths = word.startswith(("run=[", "data=["))
        if "=" in word and word not in QUIET and not is_paths:
            words.append(word)
    return words


def to_hydra(command: str, arguments: list[str]) -> list[str]:
    """Our command line as Hydra's; ConfigError where it is neither ours nor Hydra's.

    Paths become run=[…] (of rlx data: data=[…]), flags go to the front, as Hydra 1.3 takes none
    between overrides, and dotted keys need no +: what they may be is checked where they are read.
    """
    own = own_keys(command)
    swept = _swept(arguments)
    paths = []
    flags = []
    overrides = list(QUIET)
    words = iter(arguments)
    for word in words:
        if word in WITH_VALUE:
            flags += [word, next(words, "")]
        elif word in FLAGS:
            flags.append(word)
        elif word.startswith("-"):
            raise ConfigError(_as_key_value(command, word, words))
        elif _is_override(word):
            overrides.append(_upsert(_renamed(_as_path(word)), own, swept))
        else:
            paths.append(word)
    if paths:
        key = "data" if command == "data" else "run"
        quoted = ",".join(_quoted(path) for path in paths)
        overrides.append(f"{key}=[{quoted}]")
    if {"-c", "--cfg"} & set(flags):  # Hydra takes it or a sweep
        flags = [flag for flag in flags if flag not in ("-m", "--multirun")]
    flags += _use_conf(flags)
    return flags + overrides


def _swept(arguments: list[str]) -> set[str]:
    """Keys over which a named experiment sweeps; ++ would not replace them."""
    swept = set()
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "experiment":
            swept |= conf.sweeps_of(value)
    return swept


def _quoted(text: str) -> str:
    """`text` as a word of Hydra's grammar.

    There a backslash stands for itself but before a quote.
    """
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", text) + "'"


def _as_path(override: str) -> str:
    """outputs=… and out=… with whatever characters a folder's name may have."""
    key, _, value = override.partition("=")
    if key in ("outputs", "out") and re.search(r"[^\w./-]", value) and value[0] not in "'\"":
        return f"{key}={_quoted(value)}"
    return override


def _renamed(override: str) -> str:
    """`override` with a key of an earlier version called as it is today, and a warning."""
    key, equals, value = override.partition("=")
    new = conf.renamed().get(key)
    if new is None:
        return override
    print(f"rlx: {key} is called {new} now; the old name goes in the next version", file=sys.stderr)
    return f"{new}{equals}{value}"


def _use_conf(words: list[str]) -> list[str]:
    """Let the config folder that `words` name count, or conf/ where the user stands.

    Returns the flags that Hydra needs for it. What the folder's files name is found beside it, and
    in the folder where the user stands.
    """
    pairs = itertools.pairwise(words)
    folders = [folder for flag, folder in pairs if flag in ("-cd", "--config-dir")]
    flags = []
    own = Path.cwd() / "conf"
    if not folders and own.is_dir() and str(own) != conf.conf_dir():
        folders = [str(own)]
        flags = ["--config-dir", str(own)]
    conf.use(Path(folders[0]) if folders else None)
    for folder in [*(Path(folder).absolute().parent for folder in folders), Path.cwd()]:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    return flags


def _as_key_value(command: str, flag: str, words: Iterator[str]) -> str:
    """What to say of a flag that is none of Hydra's: rlx's values are key=value.

    `words`: those behind it.
    """
    key, equals, value = flag.lstrip("-").partition("=")
    if not equals:
        value = next(words, "…")
    key = key.replace("-", "_")
    known = closest(key, all_keys(command, [])) or key
    return f"{flag}: rlx takes key=value; write {known}={value}"


def _is_override(word: str) -> bool:
    """Whether `word` is key=value or ~key, and not the path of something that exists."""
    if Path(word).exists():
        return False
    if word.startswith("~"):
        return True
    return re.match(r"(hydra/)?[+~]*[\w@.:-]*[\w@:-]=", word) is not None


def _upsert(override: str, own: set[str], swept: set[str]) -> str:
    """`override` so that Hydra adds its key where it is not there yet.

    That is for a dotted key below one of the command's `own`.
    """
    key = override.partition("=")[0]
    group, dot, _ = key.partition(".")
    if dot and group in own and key not in swept:
        return f"++{override}"
    return override


def _hydra(command: str, line: list[str]) -> int:
    """Run a command on Hydra's command line; returns the exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise instead of printing, so that errors are told here
    program = "rlx" if "-sc" in line else f"rlx {command}"  # completion is installed for rlx
    sys.argv = [program, *line]
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, _told_to_stop)
    try:
        importlib.import_module(f"rlx.commands.{command}").main()
    except (HydraException, OmegaConfBaseException) as error:
        return _fail(explain(error, command, line))
    except ValueError as error:
        if "Config group override" not in str(error):
            raise
        return _fail(explain(error, command, line))
    except (RunError, Interrupted) as error:
        print(f"rlx: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("rlx: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except SystemExit as done:  # Hydra's own help and completion
        return int(done.code or 0)
    return 0


def _told_to_stop(number: int, frame: object) -> None:
    """SIGTERM ends every command as Ctrl-C does, so that what it was writing says so."""
    raise Interrupted(number, "stopped by SIGTERM")


def _fail(message: str) -> int:
    print(f"rlx: {message}", file=sys.stderr)
    return 2


def explain(error: Exception, command: str, line: list[str]) -> str:
    """What an error of Hydra's or OmegaConf's means, with the nearest valid name.

    `line`: the command line for Hydra.
    """
    text = str(error).strip()
    if "Config group override must be a string" in text:
        empty = [word for word in line if re.fullmatch(r"\w+=(null|None|)", word)]
        what = empty[0] if empty else text
        return f"{what}: a group takes one of its names (tuned=none: no tuned settings)."
    ambiguous = re.search(r"Ambiguous value for argument '([^'=]+)=([^']*)'", text)
    if ambiguous:
        key = ambiguous[1].lstrip("+")
        value = ambiguous[2].lstrip("+")
        sweep = f"rlx {command} -m {key}={value}"
        return (
            f"{key}={value}: several values. A list is {key}=[{value}]; a sweep over them: {sweep}"
        )
    not_found = re.search(r"Could not find '([^'/]+)/([^']+)'", text)
    if not_found:
        return _unknown_option(not_found[1], not_found[2])
    unknown = re.search(r"Could not override '([^']+)'", text)
    unknown = unknown or re.search(r"Key '([^']+)' is not in struct", text)
    if unknown:
        return _unknown_key(unknown[1], command, line)
    # OmegaConf's messages end with lines about its own objects, which say nothing to a user.
    text = re.sub(r"\n+\s*(full_key|object_type|reference_type).*", "", text)
    return text.replace("\n\n", "\n")


def _unknown_option(group: str, option: str) -> str:
    """What to say of an option that its config group has not."""
    names = list(conf.group_files(group))
    is_id = "/" in option or re.search(r"-v\d+$", option)
    if group == "env" and is_id:
        plain = re.sub(r"\W|_", "", option.rpartition("-")[0].lower())
        own = [f" rlx's own: env={name}." for name in names if name.replace("_", "") == plain]
        gymnasium = f"An id of Gymnasium: env=gym env.id={option}"
        return f"env={option}: no such option.{''.join(own)} {gymnasium}"
    message = f"{group}={option}: no such option.{nearest(option, names)}"
    if 1 < len(names) <= 20 and closest(option, names):
        message += f" All: {', '.join(names)}."
    return message


def _unknown_key(key: str, command: str, line: list[str]) -> str:
    """What to say of a key that the command's config has not."""
    group = key.partition(".")[0]
    if command == "resume" and group in own_keys("train"):
        may_change = sorted(own_keys(command) - {"run", "outputs", "trust"})
        return f"{key}: may not change when a run is resumed. These may: {', '.join(may_change)}."
    all_of = f"All keys: rlx {command} --help"
    if group in ("agent", "env", "eval_env") and takes_runs(command):
        return f"{key}: the run's own; rlx {command} takes it as it was trained. {all_of}"
    return f"{key}: unknown key.{nearest(key, all_keys(command, _overrides(line)))} {all_of}"


def _complete(arguments: list[str], known: dict[str, str]) -> int:
    """Tab completion.

    Of the command's name by ourselves; of the rest by Hydra, to which the line is shown without the
    command.
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
    flags = _use_conf(words)
    shorter = line.replace(f"{command} ", "", 1)
    cursor = int(os.environ.get("COMP_POINT", len(line)))
    os.environ["COMP_POINT"] = str(cursor - (len(line) - len(shorter)))
    os.environ["COMP_LINE"] = shorter
    return _hydra(command, [*flags, *arguments])
