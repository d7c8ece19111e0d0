"""The files of policies that rlx did not train, as a command line names them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlx.config import choice, convert, plain, typed
from rlx.errors import ConfigError
from rlx.runs.files import nearest_path, sha256

KINDS = ("sb3", "torchscript", "onnx")
"""The words before the colon; a Python file has its function behind it instead."""
EXPECTED = "expected sb3:FILE.zip, torchscript:FILE.pt, onnx:FILE.onnx or FILE.py:FUNCTION"


@dataclass(frozen=True)
class VictimFile:
    """One policy's file."""

    kind: str
    """One of `KINDS`, or `function`."""
    path: Path
    """The file, absolute."""
    function: str = ""
    """The name of the function in a Python file."""

    def __str__(self) -> str:
        """As a command line names it from any folder."""
        if self.kind == "function":
            return f"{self.path}:{self.function}"
        return f"{self.kind}:{self.path}"


@dataclass(frozen=True)
class Victims:
    """Policies of others, each of which is a seed, and the env that they play in."""

    files: Sequence[VictimFile]
    """All of one kind."""
    env: dict[str, Any]
    """The config group `env`."""
    vecnormalize: Sequence[Path]
    """The statistics by which observations are normalised: one file for all, or one for each."""
    raw: bool
    """Whether observations are not normalised, whatever lies beside the files."""
    activation: str | None
    """What stands between the layers; None: what the file says."""

    @classmethod
    def of_node(cls, node: Mapping[str, Any]) -> "Victims":
        """The victims that `env.victims` names; ConfigError where it has other keys than `of`."""
        return cls.of(**typed(cls.of, node, "env.victims"))

    @classmethod
    def of(
        cls, victim: Any, env: Any, vecnormalize: Any = None, activation: str | None = None
    ) -> "Victims":
        """What a command's keys of these names say; ConfigError where there are no such files."""
        files = [file for name in _texts(victim, "victim") for file in _found(name)]
        kinds = sorted({file.kind for file in files})
        if len(kinds) > 1:
            raise ConfigError(f"victim: files of one kind at a time, not {' and '.join(kinds)}.")
        if not env:
            raise ConfigError(
                "env: missing; name the env that the victim plays in, as in env=cartpole or "
                "env=gym env.id=CartPole-v1."
            )
        if kinds != ["sb3"] and (vecnormalize is not None or activation is not None):
            raise ConfigError("vecnormalize, activation: are for victim=sb3:FILE.zip.")
        raw = vecnormalize is False
        names = [] if raw or vecnormalize is None else _texts(vecnormalize, "vecnormalize")
        statistics = [_file(name, "vecnormalize") for name in names]
        if len(statistics) not in (0, 1, len(files)):
            raise ConfigError(
                f"vecnormalize: {len(statistics)} files for {len(files)} victims; expected one for "
                "all or one for each."
            )
        return cls(files, plain(env), statistics, raw, activation)

    @property
    def name(self) -> str:
        """Kind and env, as in "sb3-CartPole-v1"; it names the folder of results."""
        env = str(self.env.get("id", self.env.get("game", self.env["_target_"].split(".")[-2])))
        return f"{self.files[0].kind}-{env.replace('/', '-')}"

    @property
    def hashes(self) -> dict[str, str]:
        """The checksum of each file, by the file as a command line names it."""
        files = {str(file): sha256(file.path) for file in self.files}
        return files | {str(path): sha256(path) for path in self.vecnormalize}

    def keys(self) -> dict[str, Any]:
        """The keys that name the same victims from any folder."""
        statistics: Any = [str(path) for path in self.vecnormalize] or None
        return {
            "victim": [str(file) for file in self.files],
            "env": self.env,
            "vecnormalize": False if self.raw else statistics,
            "activation": self.activation,
        }


def _texts(names: Any, key: str) -> list[str]:
    """`names` as a list; ConfigError unless it is a text or a list of them."""
    return convert([names] if isinstance(names, str) else names, list[str], key)


def _found(name: str) -> list[VictimFile]:
    """The files that `name` means: one, or all that a pattern as sb3:models/*.zip matches."""
    kind, colon, path = name.partition(":")
    if ".py:" in name:
        path, _, function = name.rpartition(":")
        return [VictimFile("function", _file(path, "victim"), function)]
    if not colon or not path:
        raise ConfigError(f"victim={name}: {EXPECTED}.")
    choice(kind, KINDS, "victim")
    if "*" not in path:
        return [VictimFile(kind, _model(_existing(path, "victim")))]
    folder = Path(path).anchor or "."
    matching = sorted(Path(folder).glob(str(Path(path).relative_to(Path(path).anchor))))
    if not matching:
        raise ConfigError(f"victim={name}: matches no file.")
    return [VictimFile(kind, _model(file.absolute())) for file in matching]


def _model(path: Path) -> Path:
    """`path`, or the only zip in the folder `path`, as rl-zoo3 writes them."""
    if not path.is_dir():
        return path
    zips = sorted(path.glob("*.zip"))
    if len(zips) != 1:
        names = ", ".join(file.name for file in zips) or "none"
        raise ConfigError(f"victim={path}: a folder with one zip was expected; it has {names}.")
    return zips[0]


def _file(name: str, key: str) -> Path:
    """The absolute path of a file; ConfigError where there is none."""
    path = _existing(name, key)
    if not path.is_file():
        raise ConfigError(f"{key}={name}: is no file.")
    return path


def _existing(name: str, key: str) -> Path:
    """The absolute path of a file or folder; ConfigError where there is none."""
    path = Path(name).expanduser()
    if not path.exists():
        raise ConfigError(f"{key}={name}: no such file.{nearest_path(path)}")
    return path.absolute()
