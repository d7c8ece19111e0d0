"""A user's command line in Hydra's grammar, and Hydra's errors about it in plain words."""

import itertools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlx import conf
from rlx.composing import (
    FLAGS,
    QUIET,
    WITH_VALUE,
    compose_config,
    hydra_left_as_it_is,
    quoted,
)
from rlx.errors import ConfigError
from rlx.help import all_keys, options, other_command, own_keys, takes_runs
from rlx.names import closest, nearest

WORDS = {"data": "data", "new": "what"}
"""Command → the key that words without a key are for, where they are no runs."""


def config_overrides(line: list[str]) -> list[str]:
    """The words of a command line for Hydra that say what the config is."""
    words = []
    for word in line:
        # Paths, and what `options` of rlx/sweeps/planning.py takes out.
        is_other = word.startswith(("run=[", "data=[", "what=[", "sweep=", "fresh="))
        if "=" in word and word not in QUIET and not is_other:
            words.append(word)
    return words


def to_hydra(command: str, arguments: list[str]) -> list[str]:
    """The command line of an rlx command as Hydra takes it; ConfigError where it has no meaning.

    Paths become run=[…] (see `WORDS`), in a sweep a job for each of them. Flags go to the front, as
    Hydra 1.3 takes none between overrides. Dotted keys need no +: what they may be is checked where
    they are read.
    """
    groups = own_keys(command)
    swept = _swept(arguments)
    is_sweep = bool({"-m", "--multirun"} & set(arguments))
    paths = []
    flags = []
    overrides = list(QUIET)
    words = iter(arguments)
    for word in words:
        if word in WITH_VALUE:
            value = next(words, "")
            if word in ("-cd", "--config-dir"):
                value = os.path.abspath(value)  # a sweep may go on from another folder
            flags += [word, value]
        elif word in FLAGS:
            flags.append(word)
        elif word.startswith("-"):
            raise ConfigError(_as_key_value(command, word, words))
        elif _is_override(word):
            override = _filter(_renamed(_as_path(word, is_sweep)), groups)
            overrides.append(_upsert(override, groups, swept))
        else:
            paths.append(word)
    for override in overrides:
        if override.lstrip("+").startswith("hydra.sweeper.params="):
            # Which OmegaConf cannot merge with the nothing that is there.
            raise ConfigError(
                f"{override.lstrip('+')}: a sweep's values are words of the line, as in: "
                f"rlx {command} -m agent.learning_rate=1e-4,1e-3"
            )
    if paths:
        key = WORDS.get(command, "run")
        names = [quoted(path) for path in paths]
        if is_sweep and key == "run":
            overrides.append(f"run={','.join(f'[{path}]' for path in names)}")
        else:
            overrides.append(f"{key}=[{','.join(names)}]")
    if {"-c", "--cfg"} & set(flags):
        # Hydra prints a config or sweeps, not both.
        flags = [flag for flag in flags if flag not in ("-m", "--multirun")]
    flags += use_conf(flags)
    _check_folders(groups, overrides)
    _check_experiments(command, overrides)
    if command == "tune":
        overrides = _with_axes_replaced(overrides)
    return flags + overrides


def _with_axes_replaced(overrides: list[str]) -> list[str]:
    """`overrides` of rlx tune, with a null before choices for a range and a range for choices.

    OmegaConf merges a list with a list and keys with keys, and knows nothing to do with the others.
    """
    words: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key.startswith("++search.") and value[:1] in ("[", "{"):
            axis = _axis_before(key.lstrip("+"), words)
            if axis is not None and OmegaConf.is_list(axis) != value.startswith("["):
                words.append(f"{key}=null")
        words.append(override)
    return words


def _axis_before(key: str, words: list[str]) -> Any:
    """What the search space of a tuning has at a `key`; None where it has nothing, or is wrong."""
    from hydra.errors import HydraException

    config = [word for word in config_overrides(words) if not word.startswith("++search.")]
    line = config + [word for word in words if word.startswith(f"++{key}")]
    try:
        with hydra_left_as_it_is():
            return OmegaConf.select(compose_config("tune", line), key)
    except (HydraException, OmegaConfBaseException, ValueError):
        return None  # said when the whole line is composed


def _check_folders(keys: set[str], overrides: list[str]) -> None:
    """ConfigError where a folder of the user's makes Hydra take a plain key for a config group.

    `keys`: the command's own groups and keys.
    """
    folder = conf.user_dir()
    for override in overrides:
        key = override.partition("=")[0].lstrip("+")
        if folder is None or key not in keys or (Path(conf.conf_dir()) / key).is_dir():
            continue
        if (folder / key).is_dir():
            raise ConfigError(
                f"{folder / key}: a folder of this name hides the key '{key}'; rename the folder."
            )


def _check_experiments(command: str, overrides: list[str]) -> None:
    """ConfigError where a line names an experiment that is for another command."""
    if "experiment" not in own_keys(command):
        return
    for override in overrides:
        key, _, value = override.partition("=")
        for name in value.split(",") if key == "experiment" else ():
            other = other_command(name, command)
            if other is not None:
                known = ", ".join(options(command, "experiment"))
                raise ConfigError(
                    f"experiment={name}: is for rlx {other}. Those of rlx {command}: {known}."
                )


def _swept(arguments: list[str]) -> set[str]:
    """Keys over which a named experiment sweeps; ++ would not replace them."""
    swept = set()
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "experiment":
            swept |= conf.sweeps_of(value)
    return swept


def _filter(override: str, keys: set[str]) -> str:
    """`override` as a key of `where`, in a command that has this key, where it is no other `keys`.

    So any column can be named, also one whose name is that of a config group.
    """
    key, _, value = override.partition("=")
    if "where" not in keys or key in keys or not key.isidentifier():
        return override
    return f"where.{key}={quoted(value)}"


def _as_path(override: str, is_sweep: bool) -> str:
    """`override`, its value quoted where it is a path with characters of Hydra's grammar.

    In a sweep commas are between paths.
    """
    key, _, value = override.partition("=")
    if key not in ("outputs", "out", "data", "victim") or value[:1] in ("'", '"'):
        return override
    if key == "victim" and value.startswith("["):
        return override
    paths = []
    for path in value.split(",") if is_sweep else [value]:
        paths.append(quoted(path) if re.search(r"[^\w./-]", path, re.ASCII) else path)
    return f"{key}={','.join(paths)}"


def _renamed(override: str) -> str:
    """`override` with the key's name of today, and a warning where it had an earlier one."""
    key, equals, value = override.partition("=")
    new = conf.renamed().get(key)
    if new is None:
        return override
    print(f"rlx: {key} is called {new} now; the old name goes in the next version", file=sys.stderr)
    return f"{new}{equals}{value}"


def use_conf(words: list[str]) -> list[str]:
    """Let the config folder that `words` name count, or conf/ where the user stands.

    Returns the flags that Hydra needs for it.
    """
    named = _config_dir(words)
    folder = named or _conf_here()
    conf.use(folder)
    if folder is None or named is not None:
        return []
    return ["--config-dir", str(folder)]


def _config_dir(words: list[str]) -> Path | None:
    """The folder behind --config-dir in `words`, the last as for Hydra; None: there is none."""
    folder = None
    for flag, value in itertools.pairwise(words):
        if flag in ("-cd", "--config-dir"):
            folder = Path(value)
    return folder


def _conf_here() -> Path | None:
    """The folder conf/ where the user stands; None where there is none but rlx's."""
    folder = Path.cwd() / "conf"
    if folder.is_dir() and str(folder) != conf.conf_dir():
        return folder
    return None


def _as_key_value(command: str, flag: str, words: Iterator[str]) -> str:
    """The message about a `flag` that is none of Hydra's: rlx's values are key=value.

    `words`: the words behind the flag.
    """
    key, equals, value = flag.lstrip("-").partition("=")
    if not equals:
        value = next(words, "…")
    key = key.replace("-", "_")
    known = closest(key, all_keys(command, [])) or key
    return f"{flag}: rlx takes key=value; write {known}={value}"


def _is_override(word: str) -> bool:
    """Whether `word` is key=value or ~key, and not the path of something that exists."""
    if os.path.exists(word):  # of a word too long for a path Path.exists raises
        return False
    if word.startswith("~"):
        return True
    return re.match(r"(hydra/)?[+~]*[\w@.:-]*[\w@:-]=", word) is not None


def _upsert(override: str, groups: set[str], swept: set[str]) -> str:
    """`override` with ++ where it sets keys below one of the command's `groups`.

    Hydra then adds keys that are not there yet, as in env.stack=4 or eval_env={stack: 4}. Keys over
    which an experiment sweeps (`swept`) stay as they are.
    """
    key, _, value = override.partition("=")
    group, dot, _ = key.partition(".")
    if (dot or value.startswith("{")) and group in groups and key not in swept:
        return f"++{override}"
    return override


def is_of_line(error: ValueError, line: list[str]) -> bool:
    """Whether Hydra or OmegaConf raised `error`, which is none of their own, about the `line`."""
    return "Config group override" in str(error) or _below_list(error, line) is not None


def _below_list(error: Exception, line: list[str]) -> str | None:
    """The key of a `line` that OmegaConf could not find since there is a list above it."""
    part = re.fullmatch(r"invalid literal for int\(\) with base 10: '(.+)'", str(error))
    keys = [word.partition("=")[0].lstrip("+~") for word in line]
    found = [key for key in keys if part is not None and part[1] in key.split(".")]
    return found[0] if found else None


def explain(error: Exception, command: str, line: list[str]) -> str:
    """The message about an error of Hydra's or OmegaConf's, with the nearest valid name.

    `line`: the command line as `to_hydra` returned it.
    """
    text = str(error).strip()
    if "Config group override must be a string" in text:
        empty = [word for word in line if re.fullmatch(r"\w+=(null|None|)", word)]
        subject = empty[0] if empty else text
        return f"{subject}: a group takes one of its names (tuned=none: no tuned settings)."
    below_list = _below_list(error, line)
    if below_list is not None:
        above = below_list.rpartition(".")[0]
        return f"{below_list}: is no key, since {above} is a list; {above}=[…] replaces it."
    ambiguous = re.search(r"Ambiguous value for argument '([^'=]+)=([^']*)'", text)
    if ambiguous:
        key = ambiguous[1].lstrip("+")
        value = ambiguous[2].lstrip("+")
        sweep = f"rlx {command} -m {key}={value}"
        return (
            f"{key}={value}: several values. A list is {key}=[{value}]; a sweep over them: {sweep}"
        )
    plugin = re.search(r"Could not find 'hydra/(launcher|sweeper)/([^']+)'", text)
    if plugin:
        return _unknown_plugin(plugin[1], plugin[2])
    unmerged = re.search(r"Error merging override (.+)", text)
    if unmerged and error.__cause__ is not None:
        reason, *_ = str(error.__cause__).splitlines()
        return f"{unmerged[1]}: {reason}"
    not_found = re.search(r"Could not (?:find|load) '([^'/]+)/([^']*)'", text)
    if not_found:
        return _unknown_option(not_found[1], not_found[2], command)
    unknown = re.search(r"Could not override '([^']+)'", text)
    unknown = unknown or re.search(r"Key '([^']+)' is not in struct", text)
    if unknown:
        return _unknown_key(unknown[1], command, line)
    # OmegaConf's messages end with lines about its own objects, which say nothing to a user.
    text = re.sub(r"\n+\s*(full_key|object_type|reference_type).*", "", text)
    return text.replace("\n\n", "\n")


def _unknown_plugin(kind: str, name: str) -> str:
    """The message about a launcher or sweeper (`kind`) that Hydra does not have."""
    from hydra.core.config_store import ConfigStore

    plugins = ConfigStore.instance().repo["hydra"][kind]
    names = [*conf.group_files(f"hydra/{kind}"), *(Path(file).stem for file in plugins)]
    return f"hydra/{kind}={name}: no such {kind}. There are: {', '.join(sorted(names))}."


def _unknown_option(group: str, option: str, command: str) -> str:
    """The message about an option that its config group does not have."""
    names = options(command, group)
    is_id = "/" in option or re.search(r"-v\d+$", option)
    if group == "env" and is_id:
        plain = re.sub(r"\W|_", "", option.rpartition("-")[0].lower())
        ours = [f" rlx's own: env={name}." for name in names if name.replace("_", "") == plain]
        gymnasium = f"An id of Gymnasium: env=gym env.id={option}"
        return f"env={option}: no such option.{''.join(ours)} {gymnasium}"
    message = f"{group}={option}: no such option.{nearest(option, names)}"
    if 1 < len(names) <= 20 and closest(option, names):
        message += f" All: {', '.join(names)}."
    return message


def _unknown_key(key: str, command: str, line: list[str]) -> str:
    """The message about a key that the command's config does not have."""
    group = key.partition(".")[0]
    if command == "resume" and group in own_keys("train"):
        may_change = sorted(own_keys(command) - {"run", "outputs", "trust"})
        return f"{key}: may not change when a run is resumed. These may: {', '.join(may_change)}."
    if key in conf.renamed():
        return f"{key}: is called {conf.renamed()[key]} now."
    all_of = f"All keys: rlx {command} --help"
    if key.startswith("hydra.launcher."):
        chosen = [word for word in line if word.startswith("hydra/launcher=")]
        all_of = f"All: rlx {' '.join([command, *chosen])} --cfg hydra -p hydra.launcher"
        return f"{key}: unknown key of this launcher. {all_of}"
    if group in ("agent", "env", "eval_env") and takes_runs(command):
        return f"{key}: the run's own; rlx {command} takes it as it was trained. {all_of}"
    return f"{key}: unknown key.{nearest(key, all_keys(command, config_overrides(line)))} {all_of}"
