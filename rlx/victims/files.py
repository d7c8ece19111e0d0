"""The files of policies that rlx did not train, as a command line names them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlx.config import choice, convert, plain, typed
from rlx.errors import ConfigError
from rlx.runs.files import nearest_path, sha256

KINDS = {"sb3": ".zip", "torchscript": ".pt", "onnx": ".onnx"}
"""The words before the colon, and how their files end; a Python file has its function behind it."""
STATISTICS = ("vecnormalize", "vec_normalize")
"""What rl-zoo3, and the models it puts on a hub, call the file of VecNormalize's statistics."""
EXPORT = (
    "export it once: import pickle, numpy; "
    "n = pickle.load(open('{name}.pkl', 'rb')); numpy.savez('{name}.npz', obs_mean=n.obs_rms.mean, "
    "obs_var=n.obs_rms.var, epsilon=n.epsilon, clip_obs=n.clip_obs)"
)
"""How a pickle of VecNormalize becomes numbers, where SB3 is installed."""
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
    vecnormalize: Path | None = None
    """The npz file with the statistics by which observations are normalised; None: they are not."""

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
        if kinds == ["sb3"] and vecnormalize is not False:
            files = _with_statistics(files, vecnormalize)
        return cls(files, plain(env), activation)

    @property
    def name(self) -> str:
        """Kind and env, as in "sb3-CartPole-v1"; it names the folder of results."""
        env = str(self.env.get("id", self.env.get("game", self.env["_target_"].split(".")[-2])))
        return f"{self.files[0].kind}-{env.replace('/', '-')}"

    @property
    def hashes(self) -> dict[str, str]:
        """The checksum of each file, by the file as a command line names it."""
        sums = {}
        for file in self.files:
            sums[str(file)] = sha256(file.path)
            if file.vecnormalize is not None:
                sums[str(file.vecnormalize)] = sha256(file.vecnormalize)
        return sums

    def keys(self) -> dict[str, Any]:
        """The keys that name the same victims from any folder."""
        statistics: Any = [str(file.vecnormalize) for file in self.files if file.vecnormalize]
        if not statistics:
            statistics = False if self.files[0].kind == "sb3" else None
        return {
            "victim": [str(file) for file in self.files],
            "env": self.env,
            "vecnormalize": statistics,
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
        return [VictimFile("function", _file(path, f"victim={name}"), function)]
    if not colon or not path:
        raise ConfigError(f"victim={name}: {EXPECTED}.{_meant(name)}")
    choice(kind, KINDS, "victim")
    if "*" not in path:
        return [VictimFile(kind, _model(kind, path, f"victim={name}"))]
    folder = Path(path).anchor or "."
    matching = sorted(Path(folder).glob(str(Path(path).relative_to(Path(path).anchor))))
    if not matching:
        raise ConfigError(f"victim={name}: matches no file.")
    return [VictimFile(kind, _model(kind, str(file), f"victim={kind}:{file}")) for file in matching]


def _meant(name: str) -> str:
    """The end of an error message about a victim without a kind: how it is probably meant."""
    path = Path(name)
    if (path / "meta.json").is_file():
        return f" A run of rlx goes without the key, as in: rlx attack {name}"
    for kind, suffix in KINDS.items():
        if path.suffix == suffix:
            return f" Did you mean 'victim={kind}:{name}'?"
    return ""


def _with_statistics(files: Sequence[VictimFile], given: Any) -> list[VictimFile]:
    """`files` with the statistics that were `given`; None: with those that lie beside each.

    ConfigError where they are too many or too few.
    """
    if given is None:
        statistics = [_beside(file.path) for file in files]
        if None in statistics and set(statistics) != {None}:
            raise ConfigError(
                "vecnormalize: beside some of the victims' files, not all; name them."
            )
    else:
        names = _texts(given, "vecnormalize")
        if len(names) not in (1, len(files)):
            raise ConfigError(
                f"vecnormalize: {len(names)} files for {len(files)} victims; expected one for all "
                "or one for each."
            )
        statistics = [_file(name, f"vecnormalize={name}") for name in names]
        statistics *= len(files) // len(names)
    pairs = zip(files, statistics, strict=True)
    return [replace(file, vecnormalize=own) for file, own in pairs]


def _beside(model: Path) -> Path | None:
    """The statistics beside a model; ConfigError where they are there as a pickle alone."""
    for folder in folders(model):
        for name in STATISTICS:
            file = folder / name
            if file.with_suffix(".npz").is_file():
                return file.with_suffix(".npz")
            if file.with_suffix(".pkl").is_file():
                raise ConfigError(
                    f"vecnormalize: {file}.pkl is a pickle, which is never loaded; "
                    f"{EXPORT.format(name=file)} (vecnormalize=false: it saw raw observations)."
                )
    return None


def folders(model: Path) -> list[Path]:
    """Where rl-zoo3 puts what belongs to a model: beside it, or in a folder of the env's name."""
    return [model.parent, *sorted(path for path in model.parent.iterdir() if path.is_dir())]


def _model(kind: str, name: str, words: str) -> Path:
    """The absolute path of a model; of a folder, as rl-zoo3 writes them, the only zip in it."""
    path = _existing(name, words)
    if kind != "sb3" or not path.is_dir():
        return _file(name, words)
    zips = sorted(path.glob("*.zip"))
    if len(zips) != 1:
        names = ", ".join(file.name for file in zips) or "none"
        raise ConfigError(f"{words}: a folder with one zip was expected; it has {names}.")
    return zips[0]


def _file(name: str, words: str) -> Path:
    """The absolute path of a file; ConfigError, which begins with `words`, where there is none."""
    path = _existing(name, words)
    if not path.is_file():
        raise ConfigError(f"{words}: is a folder; expected a file.")
    return path


def _existing(name: str, words: str) -> Path:
    """The absolute path of a file or folder; ConfigError where there is none."""
    path = Path(name).expanduser()
    if not path.exists():
        raise ConfigError(f"{words}: no such file.{nearest_path(path)}")
    return path.absolute()
