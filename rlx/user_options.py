"""A user's options in Hydra's eyes: they hide those of rlx of the same name.

Hydra takes the first file of a name along its search path, and puts a user's folder last.
"""

from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import Container, DictConfig, OmegaConf

from rlx.conf import conf_dir, user_dir

_hiding: set[str] = set()
"""Files of the user's folder that were taken instead of rlx's, from this folder on."""


class UserOptions(FileConfigSource):
    """The options in the user's folder; what is in no group is a command's, and stays rlx's."""

    @staticmethod
    def scheme() -> str:
        """What its paths begin with."""
        return "user"

    def is_config(self, config_path: str) -> bool:
        """Whether the user has an option of this name."""
        return "/" in config_path and super().is_config(config_path)

    def load_config(self, config_path: str) -> ConfigResult:
        """The content of an option; ConfigCompositionException where it would load itself."""
        found = super().load_config(config_path)
        file = self._normalize_file_name(config_path)
        if _defaults_name(found, file.removesuffix(".yaml")):
            raise ConfigCompositionException(
                f"{Path(self.path, file)}: its defaults name the file itself, which hides rlx's; "
                "give it another name."
            )
        if Path(conf_dir(), file).is_file():
            _hiding.add(file)
        if config_path.startswith("search/"):
            found.config = self._whole_space(found.config)
        return found

    def _whole_space(self, config: Container) -> Container:
        """A search space with those that its defaults name put in; others stay as they are.

        Choices replace a range there, and a range choices; OmegaConf merges no list with keys.
        """
        content = OmegaConf.to_container(config)
        names = content.pop("defaults", []) if isinstance(content, dict) else []
        if not names or not all(isinstance(name, str) for name in names):
            return config
        space: dict[Any, Any] = {}
        for name in names if "_self_" in names else [*names, "_self_"]:
            other = content if name == "_self_" else self._space(name)
            if not isinstance(other, dict):
                return config  # Hydra says what is wrong
            space = _merged(space, other)
        return OmegaConf.create(space)

    def _space(self, name: str) -> Any:
        """The content of the search space of a name, the user's or rlx's; None: there is none."""
        path = f"search/{name}"
        file = Path(conf_dir(), f"{path}.yaml")
        if self.is_config(path):
            return OmegaConf.to_container(self.load_config(path).config)
        return OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else None


class UserFolder(SearchPathPlugin):
    """Puts the user's options before rlx's, and the rest of the folder last."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """What Hydra asks for whenever it is about to compose."""
        folder = user_dir()
        if folder is not None:
            search_path.prepend("user", f"{UserOptions.scheme()}://{folder}", anchor="main")
            search_path.append("user", f"file://{folder}")


def register() -> None:
    """Let Hydra know of the user's folder."""
    SourcesRegistry.instance().register(UserOptions)
    Plugins.instance().register(UserFolder)


def newly_hiding() -> list[str]:
    """The user's files that were taken instead of rlx's since this was asked for last."""
    files = sorted(_hiding)
    _hiding.clear()
    return files


def _merged(former: Any, later: Any) -> Any:
    """The later of two values; of two with keys, the keys of both, and what they have merged."""
    if not isinstance(former, dict) or not isinstance(later, dict):
        return later
    return former | {key: _merged(former.get(key), value) for key, value in later.items()}


def _defaults_name(found: ConfigResult, path: str) -> bool:
    """Whether the defaults of an option name the option at this `path`, as in "agent/dqn"."""
    group, _, name = path.rpartition("/")
    defaults = found.config.get("defaults") if isinstance(found.config, DictConfig) else None
    for item in defaults or []:
        pairs = item.items() if isinstance(item, DictConfig) else [(None, item)]
        for key, value in pairs:
            if key is None and value in (name, f"/{path}"):
                return True
            if key == f"/{group}" and value == name:
                return True
    return False
