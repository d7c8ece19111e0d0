"""What Hydra composes for the jobs of a sweep; what many have in common is composed once."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, open_dict, read_write

from rlx.composing import hydra_left_as_it_is, rename

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


class JobConfigs:
    """The configs of the jobs of a sweep.

    Hydra takes 60 ms for each, nearly all of it for the files that a job consists of. Jobs that
    differ in values alone consist of the same files, to which the values are then applied.
    """

    def __init__(self, loader: Any, config: DictConfig):
        """`loader`: Hydra's; `config`: what it has composed for the sweep."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        self._loader = loader
        self._config = config
        self._parser = OverridesParser.create(config_loader=loader)
        # With the folders that the line itself names.
        _, self._files = loader._parse_overrides_and_create_caching_repo(
            config.hydra.job.config_name, list(config.hydra.overrides.hydra)
        )
        self._of_files: dict[tuple[str, ...], tuple[DictConfig, Any]] = {}
        """Overrides that choose files → the config that is composed of these, Hydra's own part."""

    @contextmanager
    def running(self, overrides: Sequence[str]) -> Iterator[DictConfig]:
        """The config of the job of these overrides, as if the job ran within."""
        from hydra._internal.config_loader_impl import ConfigLoaderImpl
        from hydra.core.hydra_config import HydraConfig

        parsed = self._parser.parse_overrides(list(overrides))
        values = [override for override in parsed if not self._chooses_file(override)]
        files = tuple(str(each.input_line) for each in parsed if self._chooses_file(each))
        if files not in self._of_files:
            self._of_files[files] = self._composed(files)
        of_files, hydra = self._of_files[files]
        config = copy.deepcopy(of_files)
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        with read_write(hydra.hydra):
            hydra.hydra.overrides.task = list(overrides)
        with hydra_left_as_it_is():
            HydraConfig.instance().cfg = hydra
            rename(config)
            yield config

    def _composed(self, files: Sequence[str]) -> tuple[DictConfig, Any]:
        """What Hydra composes of these files, and its own part of it."""
        from hydra.core.hydra_config import HydraConfig

        config = self._loader.load_sweep_config(self._config, list(files))
        with hydra_left_as_it_is():
            HydraConfig.instance().set_config(config)
            hydra = HydraConfig.instance().cfg
        with open_dict(config):
            del config["hydra"]
        return config, hydra

    def _chooses_file(self, override: "Override") -> bool:
        """Whether an override names an option of a config group, as Hydra tells it."""
        is_group = self._files.group_exists(override.key_or_group)
        return is_group and not isinstance(override.value(), dict)
