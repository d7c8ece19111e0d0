"""The texts of `rlx --help` and `rlx <command> --help`, and the names of all keys."""

import ast
import pkgutil
import re
from pathlib import Path
from typing import Any

import yaml

import rlx.commands
from rlx.conf import conf_dir, conf_dirs, group_files


def commands() -> dict[str, str]:
    """The commands of rlx, name → the first line of the docstring of its file.

    The files in rlx/commands are read and not imported: torch alone takes seconds.
    """
    found = {}
    for folder in rlx.commands.__path__:
        for module in pkgutil.iter_modules([folder]):
            source = (Path(folder) / f"{module.name}.py").read_text()
            docstring = ast.get_docstring(ast.parse(source)) or ""
            found[module.name] = docstring.partition("\n")[0]
    return found


def usage() -> str:
    """The text of `rlx --help`."""
    lines = ["usage: rlx <command> [run …] [key=value …]", "", "commands:"]
    lines += [f"  {name:<10} {text}" for name, text in commands().items()]
    lines += [
        "",
        "  rlx train agent=hdqn env=acrobot            train 10 seeds of an agent",
        "  rlx attack eps=0:0.03:0.0025                attack the newest run",
        "  rlx train -m agent.learning_rate=1e-4,1e-3  a sweep: one job per combination",
        "",
        "rlx <command> --help explains its keys and lists config groups.  "
        "rlx <command> --cfg job prints the composed config.",
        'Tab completion: eval "$(rlx --completion bash)" (or zsh, fish).',
    ]
    return "\n".join(lines)


def command_usage(command: str, overrides: list[str]) -> str:
    """The text of `rlx <command> --help`: the keys, with the values that this command line uses.

    The keys of groups that the line names are shown too. Raises Hydra's errors where it is wrong.
    """
    text = _command_file(command)
    defaults = ""
    keys = text
    if text.startswith("defaults"):
        defaults, _, keys = text.partition("\n\n")
    takes = "[run …] " if takes_runs(command) else ""
    config = _values(command, overrides)
    named = dict(word.split("=", 1) for word in overrides if re.match(r"\w+=", word))
    lines = [f"usage: rlx {command} {takes}[key=value …]", "", commands()[command], ""]
    lines.append(_with_values(keys, config).strip())
    for group, _ in re.findall(r"- (\w+): (\w+)", defaults):
        files = group_files(group)
        lines += ["", f"{group}: {', '.join(options(command, group))}"]
        if group in named and isinstance(config.get(group), dict):
            option = named[group]
            texts = "\n".join(path.read_text() for path in _parents(files, option))
            lines += ["", f"{group}={option}, as this command line has it:"]
            lines += _group_lines(texts, config[group])
    if len(conf_dirs()) > 1:
        lines += ["", f"(Options of {conf_dirs()[1]} are among them.)"]
    keys_of = ""
    if "agent" in own_keys(command):
        keys_of = f"The keys of an agent or env: rlx {command} agent=dqn --help. "
    lines += [
        "",
        f"{keys_of}All values: rlx {command} --cfg job.",
        "-m makes a sweep of values behind commas; sweep=NAME names it, fresh=true does it anew.",
    ]
    return "\n".join(lines)


def example(command: str) -> str:
    """A line of a command that takes no run, as one types it."""
    if "agent" in own_keys(command):
        return f"rlx {command} agent=dqn"
    return f"rlx {command} experiment={options(command, 'experiment')[0]}"


def takes_runs(command: str) -> bool:
    """Whether a command is given run directories."""
    return "run" in own_keys(command)


def own_keys(command: str) -> set[str]:
    """The groups and top-level keys of a command, as its file in conf/ has them."""
    text = _command_file(command)
    groups = re.findall(r"^  - (?:optional )?(\w+):", text, re.MULTILINE)
    keys = re.findall(r"^(\w+):", text, re.MULTILINE)
    return {*groups, *keys} - {"defaults"}


def options(command: str, group: str) -> list[str]:
    """The options of a config group that a command takes: all, but no experiments of another's."""
    names = list(group_files(group))
    if group != "experiment":
        return names
    return [name for name in names if other_command(name, command) is None]


def other_command(experiment: str, command: str) -> str | None:
    """The command that an experiment is for, where its keys are not this `command`'s."""
    keys = _experiment_keys(experiment)
    if keys <= own_keys(command):
        return None
    for other in ("train", "study"):  # what trains takes the keys of rlx train
        if keys <= own_keys(other):
            return other
    return None  # some key is nobody's, which is said of the key


def _experiment_keys(experiment: str) -> set[str]:
    """The groups and top-level keys that the files of an experiment set."""
    keys: set[str] = set()
    files = group_files("experiment")
    for file in _parents(files, experiment):
        text = file.read_text()
        keys |= set(re.findall(r"^(\w+):", text, re.MULTILINE))
        keys |= set(re.findall(r"^\s*- override /(\w+):", text, re.MULTILINE))
    return keys - {"defaults", "hydra"}


def _command_file(command: str) -> str:
    """The text of conf/`command`.yaml, behind that of the command whose keys it takes over."""
    text = (Path(conf_dir()) / f"{command}.yaml").read_text()
    base = re.search(r"^  - (?!_self_)(\w+)$", text, re.MULTILINE)
    if base is None:
        return text
    defaults, _, keys = text.partition("\n\n")
    base_defaults, _, base_keys = _command_file(base[1]).partition("\n\n")
    own_defaults = defaults.replace(f"{base[0]}\n", "").removeprefix("defaults:\n")
    known = set(re.findall(r"^\w+:", base_keys, re.MULTILINE))
    lines = [line for line in keys.splitlines() if line.partition(" ")[0] not in known]
    return f"{base_defaults}\n{own_defaults}\n\n{base_keys}" + "\n".join(lines) + "\n"


def all_keys(command: str, overrides: list[str]) -> list[str]:
    """Dotted names of all keys of a command's config and of the groups that its line names."""
    from hydra.errors import HydraException

    groups = ("agent", "env", "attack", "device", "tracker")
    named = [word for word in overrides if word.partition("=")[0] in groups]
    try:
        config = _values(command, named)
    except (HydraException, ValueError):
        config = _values(command, [])
    return _dotted(config)


def _values(command: str, overrides: list[str]) -> dict[str, Any]:
    """The config of a command line as a plain dictionary, unresolved; raises Hydra's errors."""
    from omegaconf import OmegaConf

    from rlx.composing import compose_config

    config = OmegaConf.to_container(compose_config(command, overrides))
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def _dotted(config: dict[str, Any], prefix: str = "") -> list[str]:
    """The names of all keys, nested ones too."""
    names = []
    for key, value in config.items():
        names.append(f"{prefix}{key}")
        if isinstance(value, dict):
            names += _dotted(value, f"{prefix}{key}.")
    return names


def _parents(files: dict[str, Path], option: str) -> list[Path]:
    """The files of the options that an option's defaults name, then its own file."""
    if option not in files:
        return []
    before = []
    for name in re.findall(r"^\s+- (\w+)$", files[option].read_text(), re.MULTILINE):
        if name != "_self_":
            before += _parents(files, name)
    return [*before, files[option]]


def _with_values(text: str, config: dict[str, Any]) -> str:
    """YAML `text` whose top-level keys have the values of `config`."""
    lines = []
    for line in text.splitlines():
        key = line.partition(":")[0]
        if re.match(r"\w+:", line) and key in config:
            line = f"{key}: {_word(config[key])}"
        lines.append(line)
    return "\n".join(lines)


def _group_lines(text: str, values: dict[str, Any]) -> list[str]:
    """A line for each of a group's `values`, under the comment above its key in the YAML `text`."""
    comments: dict[str, list[str]] = {}
    above: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            above.append(stripped)
            continue
        key = stripped.partition(":")[0]
        if key in values:
            comments[key] = [comment for comment in above if "@package" not in comment]
        above = []
    lines = []
    for key, value in values.items():
        lines += [f"  {comment}" for comment in comments.get(key, ())]
        lines.append(f"  {key}: {_word(value)}")
    return lines


def _word(value: Any) -> str:
    """`value` as YAML, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.strip().removesuffix("...").strip()
