"""A user's options in Hydra's eyes: they hide those of rlx of the same name.

Hydra takes the first file of a name along its search path, and puts a user's folder last.
"""

from pathlib import Path

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig

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
        return found


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
