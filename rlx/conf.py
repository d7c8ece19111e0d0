"""The folders of config files: rlx's own conf/, and a folder of the user's."""

import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import rlx

_user: list[Path] = []
"""The user's folder of config groups; empty where there is none."""


def conf_dir() -> str:
    """The absolute path of rlx's config groups.

    They lie beside the package in a checkout (also when installed editable), else inside it.
    """
    package = Path(rlx.__file__).resolve().parent
    checkout = package.parent / "conf"
    return str(checkout if (checkout / "train.yaml").is_file() else package / "conf")


def use(folder: Path | None) -> None:
    """Let the options in a user's `folder` count from now on; None: only rlx's.

    Modules that its files name are found beside it, and in the folder where the user stands, behind
    all others.
    """
    _user[:] = [] if folder is None else [folder.absolute()]
    for place in [*(user.parent for user in _user), Path.cwd()]:
        if str(place) not in sys.path:
            sys.path.append(str(place))


def user_dir() -> Path | None:
    """The user's folder of config groups: `--config-dir`, or conf/ where they stand."""
    return _user[0] if _user else None


def conf_dirs() -> list[Path]:
    """All folders with config groups: rlx's, then the user's."""
    return [Path(conf_dir()), *_user]


def group_files(group: str) -> dict[str, Path]:
    """Option → file of a config group; the user's file hides one of rlx's of the same name."""
    files = [file for folder in conf_dirs() for file in (folder / group).glob("*.yaml")]
    return {file.stem: file for file in sorted(files, key=lambda file: file.stem)}


def sweeps_of(experiment: str) -> set[str]:
    """The keys over which an experiment sweeps by itself."""
    file = group_files("experiment").get(experiment)
    text = file.read_text() if file else ""
    if "MULTIRUN" not in text:
        return set()
    return set(yaml.safe_load(text)["hydra"].get("sweeper", {}).get("params", {}))


def options_with(group: str, key: str) -> list[str]:
    """The options of a group whose file has `key`, sorted.

    Options that leave it to the user to set the key (???) come first.
    """
    asking = []
    setting = []
    for option, file in group_files(group).items():
        keys = yaml.safe_load(file.read_text()) or {}
        keys = keys.get(group, keys) if isinstance(keys, dict) else {}
        if key not in keys:
            continue
        if keys[key] == "???":
            asking.append(option)
        else:
            setting.append(option)
    return asking + setting


@cache
def synonyms() -> dict[str, list[str]]:
    """Other libraries' names of keys, in lower case → rlx's keys, from conf/help/synonyms.yaml."""
    table: dict[str, Any] = yaml.safe_load(Path(conf_dir(), "help/synonyms.yaml").read_text())
    result: dict[str, list[str]] = {}
    for key, words in table.items():
        for word in words:
            result.setdefault(word, []).append(key)
    return result


@cache
def renamed() -> dict[str, str]:
    """Keys of earlier versions → their names of today, from conf/help/renamed.yaml."""
    return yaml.safe_load(Path(conf_dir(), "help/renamed.yaml").read_text())
