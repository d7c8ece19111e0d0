"""What `rlx --help` and `rlx <command> --help` print, and the names of all keys."""

import ast
import pkgutil
import re
from pathlib import Path
from typing import Any

import yaml

import rlx.commands
from rlx.conf import conf_dir, conf_dirs, group_files, user_dir


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


def command_usage(command: str, overrides: list[str]) -> str:
    """The text of `rlx <command> --help`: its keys, with the values that this command line would use.

    Of groups that the line names, their keys too. Raises Hydra's errors where the line is wrong.
    """
    text = (Path(conf_dir()) / f"{command}.yaml").read_text()
    defaults, _, keys = text.partition("\n\n") if text.startswith("defaults") else ("", "", text)
    takes = "[run …] " if takes_runs(command) else ""
    config = composed(command, overrides)
    named = dict(one.split("=", 1) for one in overrides if re.match(r"\w+=", one))
    head = f"usage: rlx {command} {takes}[key=value …]"
    lines = [head, "", commands()[command], "", _with_values(keys, config).strip()]
    for group, _ in re.findall(r"- (\w+): (\w+)", defaults):
        files = group_files(group)
        lines += ["", f"{group}: {', '.join(files)}"]
        if group in named and isinstance(config.get(group), dict):
            own = "\n".join(path.read_text() for path in _parents(files, named[group]))
            lines += ["", f"{group}={named[group]}, as this command line has it:"]
            lines += _group_lines(own, config[group])
    if len(conf_dirs()) > 1:
        lines += ["", f"(Options of {conf_dirs()[1]} are among them.)"]
    lines += [
        "",
        f"The keys of an agent or env: rlx {command} agent=dqn --help. All values: rlx {command} --cfg job.",
    ]
    return "\n".join(lines)


def takes_runs(command: str) -> bool:
    """Whether a command is given run directories."""
    return "run" in own_keys(command)


def own_keys(command: str) -> set[str]:
    """The groups and top-level keys of a command, as its file in conf/ has them."""
    text = (Path(conf_dir()) / f"{command}.yaml").read_text()
    groups = re.findall(r"^  - (?:optional )?(\w+):", text, re.MULTILINE)
    return {*groups, *re.findall(r"^(\w+):", text, re.MULTILINE)} - {"defaults"}


def all_keys(command: str, overrides: list[str]) -> list[str]:
    """Dotted names of all keys of a command's config and of the groups that its line names."""
    from hydra.errors import HydraException

    groups = [one for one in overrides if one.split("=")[0] in ("agent", "env", "attack", "device")]
    try:
        config = composed(command, groups)
    except (HydraException, ValueError):
        config = composed(command, [])

    def names(node: dict[str, Any], prefix: str) -> list[str]:
        found = []
        for key, value in node.items():
            found.append(f"{prefix}{key}")
            if isinstance(value, dict):
                found += names(value, f"{prefix}{key}.")
        return found

    return names(config, "")


def composed(command: str, overrides: list[str]) -> dict[str, Any]:
    """The config that a command line would get, unresolved; raises Hydra's errors."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    folder = user_dir()
    search = [] if folder is None else [f"hydra.searchpath=['file://{folder}']"]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = OmegaConf.to_container(compose(command, [*overrides, *search]))
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def _parents(files: dict[str, Path], option: str) -> list[Path]:
    """The files of an option and of those that its defaults name, these first."""
    if option not in files:
        return []
    inherited = re.findall(r"^\s+- (\w+)$", files[option].read_text(), re.MULTILINE)
    before = [path for name in inherited if name != "_self_" for path in _parents(files, name)]
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
    """One line for each of a group's `values`, under the comment that the YAML `text` has above it."""
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
    """`value` as YAML has it on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.strip().removesuffix("...").strip()
