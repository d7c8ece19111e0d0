"""rlx <command> [run …] [overrides]: finds the command, hands the rest to Hydra, turns errors into one screen and exit code 2."""

import ast
import importlib
import itertools
import os
import pkgutil
import re
import sys
from pathlib import Path

import rlx
import rlx.commands

QUIET = (
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra.output_subdir=null",
    "hydra.run.dir=.",
    "hydra.sweep.dir=outputs/sweeps/${now:%Y%m%d-%H%M%S-%f}",
    "hydra.sweep.subdir=.",
)
"""rlx makes its own run directories and messages; Hydra only composes."""


def commands() -> dict[str, str]:
    """Name → first line of the docstring of every file in rlx/commands, read without importing any."""
    found = {}
    for folder in rlx.commands.__path__:
        for module in pkgutil.iter_modules([folder]):
            source = (Path(folder) / f"{module.name}.py").read_text()
            found[module.name] = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    return found


def usage() -> str:
    """The text of `rlx --help`."""
    lines = ["usage: rlx <command> [run …] [key=value …]", "", "commands:"]
    lines += [f"  {name:<10} {text}" for name, text in commands().items()]
    lines += [
        "",
        "  rlx train agent=hdqn env=acrobot            train 10 seeds of an agent",
        "  rlx attack eps=0:0.03:0.0025                attack the newest run",
        "  rlx train -m agent.learning_rate=1e-4,1e-3  one run per combination",
        "",
        "rlx <command> --help explains its keys and lists config groups.  rlx <command> --cfg job prints the composed config.",
        'Tab completion: eval "$(rlx --completion bash)" (or zsh, fish).',
    ]
    return "\n".join(lines)


def command_usage(command: str, arguments: list[str]) -> str:
    """The text of `rlx <command> --help`: its keys as conf/ explains them, and the groups' options; of those chosen, their keys too."""
    from rlx.config import conf_dir

    conf = Path(conf_dir())
    folders = dict.fromkeys([conf, Path.cwd() / "conf"])
    text = (conf / f"{command}.yaml").read_text()
    defaults, _, keys = text.partition("\n\n") if text.startswith("defaults") else ("", "", text)
    takes = "[run …] " * _takes_runs(command)
    lines = [f"usage: rlx {command} {takes}[key=value …]", "", commands()[command], "", keys.strip()]
    chosen = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    for group, default in re.findall(r"- (\w+): (\w+)", defaults):
        options = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
        lines += ["", f"{group}: {', '.join(options)}"]
        for folder in folders:
            path = folder / group / f"{chosen.get(group, default)}.yaml"
            if group in chosen and path.is_file():
                lines += ["", f"{group}={chosen[group]} sets:", *("  " + line for line in path.read_text().splitlines())]
    lines += ["", f"The keys of an agent or env: rlx {command} agent=dqn --help. All values: rlx {command} --cfg job."]
    return "\n".join(lines)


def main() -> None:
    """Console entry point."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
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
        from rlx.config import ConfigError, choice

        try:
            shell = choice(arguments[1] if len(arguments) > 1 else "bash", ("bash", "zsh", "fish"), "--completion")
        except ConfigError as error:
            return _fail(str(error))
        return _hydra("train", ["-sc", f"install={shell}"])
    command, *rest = arguments
    if command not in known:
        from rlx.config import nearest

        return _fail(f"rlx {command}: unknown command.{nearest(command, known)}")
    if {"-h", "--help"} & set(rest):
        print(command_usage(command, rest))
        return 0
    arguments = _to_hydra(command, rest)
    if any(a.startswith("run=[") for a in arguments) and not _takes_runs(command):
        return _fail(f"rlx {command}: takes no run; write key=value, as in: rlx {command} agent=dqn")
    return _hydra(command, arguments)


def _takes_runs(command: str) -> bool:
    from rlx.config import conf_dir

    return "\nrun:" in (Path(conf_dir()) / f"{command}.yaml").read_text()


def _to_hydra(command: str, arguments: list[str]) -> list[str]:
    """Our command line as Hydra's: paths become run=[…] (of rlx data: data=[…]), flags go to the front, as Hydra 1.3 takes none
    between overrides."""
    takes_value = ("-cd", "--config-dir", "-cn", "--config-name", "-cp", "--config-path", "-c", "--cfg", "-i", "--info", "-sc")
    paths, flags, overrides = [], [], list(QUIET)
    values = iter(arguments)
    for argument in values:
        if argument in takes_value:
            flags += [argument, next(values, "")]
        elif argument.startswith("-"):
            flags.append(argument)
        elif "=" in argument or argument.startswith("~"):
            overrides.append(argument)
        else:
            paths.append(argument)
    if paths:
        quoted = ",".join("'" + path.replace("\\", "\\\\").replace("'", "\\'") + "'" for path in paths)
        overrides.append(f"{'data' if command == 'data' else 'run'}=[{quoted}]")
    from rlx.config import conf_dir

    if (Path.cwd() / "conf").is_dir() and str(Path.cwd() / "conf") != conf_dir() and not {"-cd", "--config-dir"} & set(flags):
        flags += ["--config-dir", str(Path.cwd() / "conf")]
    for flag, folder in itertools.pairwise(flags):
        if flag in ("-cd", "--config-dir"):  # what its YAML files name lies beside it
            sys.path.append(str(Path(folder).absolute().parent))
    return flags + overrides


def _hydra(command: str, arguments: list[str]) -> int:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise instead of printing, so that errors are told here
    sys.argv = ["rlx" if "-sc" in arguments else f"rlx {command}", *arguments]  # completion is installed for rlx
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from rlx.config import ConfigError, RunError

    try:
        importlib.import_module(f"rlx.commands.{command}").main()
    except ConfigError as error:
        return _fail(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return _fail(_explain(error, command))
    except RunError as error:
        print(f"rlx: {error}", file=sys.stderr)
        return getattr(error, "code", 1)
    except KeyboardInterrupt:
        return 130
    except SystemExit as done:  # Hydra's own help and completion
        return int(done.code or 0)
    return 0


def _fail(message: str) -> int:
    print(f"rlx: {message}", file=sys.stderr)
    return 2


def _explain(error: Exception, command: str) -> str:
    """Hydra's and OmegaConf's messages, with the nearest valid name."""
    from rlx.config import nearest

    text: str = str(error).strip()
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, option = (str(part) for part in match.groups())
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        return f"{group}={option}: no such option.{nearest(option, options)}"
    if match := re.search(r"Could not override '([^']+)'", text):
        (key,) = (str(part) for part in match.groups())
        keys = _keys(command)
        if command == "resume" and key in _keys("train"):
            return f"{key}: may not change when a run is resumed. These may: {', '.join(k for k in keys if k not in ('run', 'outputs'))}."
        return f"{key}: unknown key.{nearest(key, keys)} All keys: rlx {command} --help"
    return re.sub(r"\n+\s*(full_key|object_type|reference_type).*", "", text).replace("\n\n", "\n")


def _keys(command: str) -> list[str]:
    """Dotted names of all keys of a command's default config and of its groups."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import DictConfig, OmegaConf

    from rlx.config import conf_dir

    GlobalHydra.instance().clear()
    overrides = [a for a in sys.argv[1:] if "=" in a and a.split("=")[0] in ("agent", "env", "attack", "protocol", "device")]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose(command, overrides)

    def names(node: DictConfig, prefix: str) -> list[str]:
        found = []
        for key in map(str, node):
            found.append(prefix + key)
            if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
                found += names(node[key], f"{prefix}{key}.")
        return found

    return names(config, "")


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
    shorter = line.replace(words[1] + " ", "", 1)
    os.environ["COMP_POINT"] = str(int(os.environ.get("COMP_POINT", len(line))) - (len(line) - len(shorter)))
    os.environ["COMP_LINE"] = shorter
    return _hydra(words[1], arguments)
