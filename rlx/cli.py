"""rlx <command> [run …] [overrides]: finds the command, hands the rest to Hydra, turns errors into one screen and exit code 2."""

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
WITH_VALUE = (
    "-cd", "--config-dir", "-cn", "--config-name", "-cp", "--config-path", "-c", "--cfg", "-i", "--info",
    "-p", "--package", "-sc",
)  # fmt: skip
"""Hydra's flags: those that stand alone, and those before a value."""


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
    if arguments[0] == "--version":
        print(f"rlx {rlx.__version__}")
        return 0
    if arguments[0] == "--completion":
        from rlx.config import choice

        shell = arguments[1] if len(arguments) > 1 else "bash"
        return _hydra(
            "train", ["-sc", f"install={choice(shell, ('bash', 'zsh', 'fish'), '--completion')}"]
        )
    command, *rest = arguments
    if command not in known:
        raise ConfigError(f"rlx {command}: unknown command.{nearest(command, known)}")
    line = _to_hydra(command, rest)
    if {"-h", "--help"} & set(rest):
        return _help(command, line)
    if any(a.startswith("run=[") for a in line) and not takes_runs(command):
        raise ConfigError(
            f"rlx {command}: takes no run; write key=value, as in: rlx {command} agent=dqn"
        )
    return _hydra(command, line)


def _help(command: str, line: list[str]) -> int:
    """Print a command's help; where its line is wrong, what is wrong with it."""
    from hydra.errors import HydraException

    overrides = _overrides(line)
    try:
        print(command_usage(command, overrides))
    except (HydraException, ValueError) as error:
        return _fail(_explain(error, command, line))
    return 0


def _overrides(line: list[str]) -> list[str]:
    """Those of a command line for Hydra that say what the config is."""
    return [
        a for a in line if "=" in a and a not in QUIET and not a.startswith(("run=[", "data=["))
    ]


def _to_hydra(command: str, arguments: list[str]) -> list[str]:
    """Our command line as Hydra's; ConfigError where it is neither ours nor Hydra's.

    Paths become run=[…] (of rlx data: data=[…]), flags go to the front, as Hydra 1.3 takes none
    between overrides, and dotted keys need no +: what they may be is checked where they are read.
    """
    own = own_keys(command)
    named = [a.partition("=")[2] for a in arguments if a.startswith("experiment=")]
    swept = {key for name in named for key in conf.sweeps_of(name)}  # which ++ would not replace
    paths, flags, overrides = [], [], list(QUIET)
    values = iter(arguments)
    for argument in values:
        if argument in WITH_VALUE:
            flags += [argument, next(values, "")]
        elif argument in FLAGS:
            flags.append(argument)
        elif argument.startswith("-"):
            raise ConfigError(_as_key_value(command, argument, values))
        elif _is_override(argument):
            overrides.append(_upsert(_renamed(_as_path(argument)), own, swept))
        else:
            paths.append(argument)
    if paths:
        quoted = ",".join(_quoted(path) for path in paths)
        overrides.append(f"{'data' if command == 'data' else 'run'}=[{quoted}]")
    if {"-c", "--cfg"} & set(flags):  # Hydra takes it or a sweep
        flags = [flag for flag in flags if flag not in ("-m", "--multirun")]
    flags += _use_conf(flags)
    return flags + overrides


def _quoted(text: str) -> str:
    """`text` as a word of Hydra's grammar, where a backslash stands for itself but before a quote."""
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
    """Let the config folder that `words` name, or conf/ where the user stands, count; returns the flags that Hydra needs for it.

    What its files name is found beside it, and in the folder where the user stands.
    """
    folders = [
        folder for flag, folder in itertools.pairwise(words) if flag in ("-cd", "--config-dir")
    ]
    here, more = Path.cwd() / "conf", []
    if not folders and here.is_dir() and str(here) != conf.conf_dir():
        folders, more = [str(here)], ["--config-dir", str(here)]
    conf.use(Path(folders[0]) if folders else None)
    for folder in [*(Path(folder).absolute().parent for folder in folders), Path.cwd()]:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    return more


def _as_key_value(command: str, argument: str, values: Iterator[str]) -> str:
    """What to say of a flag that is none of Hydra's: rlx's values are key=value."""
    key, equals, value = argument.lstrip("-").partition("=")
    value = value if equals else next(values, "…")
    key = key.replace("-", "_")
    known = closest(key, all_keys(command, [])) or key
    return f"{argument}: rlx takes key=value; write {known}={value}"


def _is_override(argument: str) -> bool:
    """Whether `argument` is key=value or ~key, and not the path of something that exists."""
    if Path(argument).exists():
        return False
    return re.match(
        r"(hydra/)?[+~]*[\w@.:-]*[\w@:-]=", argument
    ) is not None or argument.startswith("~")


def _upsert(override: str, own: set[str], swept: set[str]) -> str:
    """A dotted key below one of the command's `own`, so that Hydra adds it where it is not there yet."""
    key = override.partition("=")[0]
    group, dot, _ = key.partition(".")
    return f"++{override}" if dot and group in own and key not in swept else override


def _hydra(command: str, line: list[str]) -> int:
    """Run a command on Hydra's command line; returns the exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise instead of printing, so that errors are told here
    sys.argv = [
        "rlx" if "-sc" in line else f"rlx {command}",
        *line,
    ]  # completion is installed for rlx
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, _told_to_stop)
    try:
        importlib.import_module(f"rlx.commands.{command}").main()
    except (HydraException, OmegaConfBaseException) as error:
        return _fail(_explain(error, command, line))
    except ValueError as error:
        if "Config group override" not in str(error):
            raise
        return _fail(_explain(error, command, line))
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


def _explain(error: Exception, command: str, line: list[str]) -> str:
    """Hydra's and OmegaConf's messages, with the nearest valid name."""
    text: str = str(error).strip()
    if "Config group override must be a string" in text:
        empty = [a for a in line if re.fullmatch(r"\w+=(null|None|)", a)]
        what = empty[0] if empty else text
        return f"{what}: a group takes one of its names (tuned=none: no tuned settings)."
    if match := re.search(r"Ambiguous value for argument '([^'=]+)=([^']*)'", text):
        key, value = (str(part).lstrip("+") for part in match.groups())
        return f"{key}={value}: several values. A list is {key}=[{value}]; a sweep over them: rlx {command} -m {key}={value}"
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, _, option = f"{match[1]}/{match[2]}".partition("/")
        names = list(conf.group_files(group))
        if group == "env" and "/" in option:
            return f"env={option}: no such option. An id of Gymnasium: env=gym env.id={option}"
        if group == "env" and re.search(r"-v\d+$", option):
            plain = re.sub(r"\W|_", "", option.rpartition("-")[0].lower())
            own = [f" rlx's own: env={name}." for name in names if name.replace("_", "") == plain]
            return f"env={option}: no such option.{''.join(own)} An id of Gymnasium: env=gym env.id={option}"
        every = (
            f" All: {', '.join(names)}." if 1 < len(names) <= 20 and closest(option, names) else ""
        )
        return f"{group}={option}: no such option.{nearest(option, names)}{every}"
    match = re.search(r"Could not override '([^']+)'", text) or re.search(
        r"Key '([^']+)' is not in struct", text
    )
    if not match:
        return re.sub(r"\n+\s*(full_key|object_type|reference_type).*", "", text).replace(
            "\n\n", "\n"
        )
    key = str(match[1])
    keys = all_keys(command, _overrides(line))
    if command == "resume" and key.partition(".")[0] in own_keys("train"):
        may = ", ".join(sorted(own_keys(command) - {"run", "outputs", "trust"}))
        return f"{key}: may not change when a run is resumed. These may: {may}."
    if key.partition(".")[0] in ("agent", "env", "eval_env") and takes_runs(command):
        return f"{key}: the run's own; rlx {command} takes it as it was trained. All keys: rlx {command} --help"
    return f"{key}: unknown key.{nearest(key, keys)} All keys: rlx {command} --help"


def _complete(arguments: list[str], known: dict[str, str]) -> int:
    """Tab completion: of the command's name ourselves, of the rest by Hydra, to which the line is shown without the command."""
    line = os.environ["COMP_LINE"]
    words = line.split()
    if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
        prefix = words[1] if len(words) > 1 else ""
        print("\n".join(name for name in known if name.startswith(prefix)))
        return 0
    if words[1] not in known:
        return 0
    more = _use_conf(words)
    shorter = line.replace(words[1] + " ", "", 1)
    os.environ["COMP_POINT"] = str(
        int(os.environ.get("COMP_POINT", len(line))) - (len(line) - len(shorter))
    )
    os.environ["COMP_LINE"] = shorter
    return _hydra(words[1], [*more, *arguments])
