"""Paths below the folder of all runs, as a job's config has them: the folder may be moved."""

import os
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

_OUTPUTS = "{outputs}"
"""Stands for the folder of all runs at the beginning of a path."""


def movable(config: DictConfig) -> DictConfig:
    """`config` without the name of the folder `outputs` in its paths."""
    outputs = os.path.abspath(str(config.get("outputs", "outputs")))
    return _changed(config, lambda text: _moved(text, outputs, _OUTPUTS))


def placed(config: DictConfig, outputs: str) -> DictConfig:
    """A `movable` config where the folder of all runs is `outputs`."""
    folder = os.path.abspath(outputs)
    return _changed(config, lambda text: _moved(text, _OUTPUTS, folder))


def _moved(path: str, folder: str, to: str) -> str:
    """`path` below `to` instead of `folder`; another text stays as it is."""
    return f"{to}{path.removeprefix(folder)}" if path.startswith(f"{folder}/") else path


def _changed(config: DictConfig, change: Callable[[str], str]) -> DictConfig:
    """`config`, resolved, with each text in it changed, but not `outputs` itself."""

    def of(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: of(item) for key, item in value.items()}
        if isinstance(value, list):
            return [of(item) for item in value]
        return change(value) if isinstance(value, str) else value

    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return OmegaConf.create({key: of(value) for key, value in values.items()})
