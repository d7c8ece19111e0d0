"""Hydra composes: the config of a command, and what the running command chose (`chosen`)."""

import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, open_dict

from rlx.conf import conf_dir, user_dir
from rlx.config import load_class, rename_keys
from rlx.show import console

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher
    from hydra.types import HydraContext

Task = Callable[[DictConfig], float | None]
"""The work of a command on its composed config; a sweeper gets the number that it returns."""

QUIET = (
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra.output_subdir=null",
    "hydra.run.dir=.",
    "hydra.sweep.dir=outputs/sweeps/${now:%Y%m%d-%H%M%S-%f}",
    "hydra.sweep.subdir=.",
)
"""rlx makes its own run directories and messages; Hydra only composes."""

FLAGS = (
    "-m",
    "--multirun",
    "-r",
    "--run",
    "-h",
    "--help",
    "--hydra-help",
    "--resolve",
    "--version",
)
"""Hydra's flags that stand alone."""
WITH_VALUE = (
    "-cd",
    "--config-dir",
    "-cn",
    "--config-name",
    "-cp",
    "--config-path",
    "-c",
    "--cfg",
    "-i",
    "--info",
    "-p",
    "--package",
    "-sc",
)
"""Hydra's flags that stand before a value."""


def run_composed(name: str, task: Task) -> None:
    """Let Hydra compose conf/`name`.yaml with sys.argv and call `task` on the config.

    In a sweep, `task` is called on the config of each job.
    """
    import hydra

    from rlx import user_options

    user_options.register()

    def renamed(composed: DictConfig) -> float | None:
        rename(composed)
        return task(composed)

    with _composed_once():
        hydra.main(version_base="1.3", config_path=conf_dir(), config_name=name)(renamed)()


@contextmanager
def _composed_once() -> Iterator[None]:
    """Keep Hydra from composing a config twice where the first is only for its key hydra.mode.

    An experiment may set that key, or the command line.
    """
    from hydra._internal.hydra import Hydra

    if any(word.startswith(("experiment=", "hydra.mode=")) for word in sys.argv):
        yield
        return
    get_mode = Hydra.get_mode
    Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = get_mode  # type: ignore[method-assign]


def rename(composed: DictConfig) -> None:
    """Give the keys of the running job's config their names of today, in place.

    A user's YAML may be older than rlx.
    """
    from hydra.core.hydra_config import HydraConfig

    rename_keys(composed, HydraConfig.get().overrides.task)


@contextmanager
def sweep_of(name: str, words: Sequence[str]) -> "Iterator[tuple[HydraContext, DictConfig]]":
    """Hydra's context of a sweep of conf/`name`.yaml, and its config, with no key that is swept.

    `words`: the overrides of the command line.
    """
    from hydra import initialize_config_dir
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import HydraContext, RunMode

    from rlx import user_options

    user_options.register()
    with initialize_config_dir(conf_dir(), version_base="1.3", job_name=name):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        config = hydra.compose_config(
            name, list(words), RunMode.MULTIRUN, with_log_configuration=False
        )
        yield HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config)), config


@contextmanager
def launcher(name: str, words: Sequence[str], task: Task) -> "Iterator[Launcher]":
    """The launcher that `words` name; it does `task` on conf/`name`.yaml for the jobs it is given.

    `words`: the overrides of the command line. Hydra's own sweepers make jobs of words, and so
    could not be told which to leave out.
    """
    from hydra.core.plugins import Plugins
    from hydra.plugins.launcher import Launcher

    with sweep_of(name, words) as (context, config):
        node = config.hydra.launcher
        if str(node._target_).startswith("hydra"):
            plugins = Plugins.instance()
            plugin = plugins.instantiate_launcher(context, task_function=task, config=config)
        else:
            # Hydra finds launchers only in packages of the name hydra_plugins.
            plugin = load_class(node, "hydra.launcher", Launcher)()
            plugin.setup(hydra_context=context, task_function=task, config=config)
        yield plugin


def tell_users_options() -> None:
    """Say which options of rlx's are hidden by the user's, in what was composed since the last."""
    from rlx.user_options import newly_hiding

    for file in newly_hiding():
        console.facts(conf=f"{user_dir()}/{file}, instead of rlx's")


def overrides_of(argv: Sequence[str]) -> list[str]:
    """The words of a command line for Hydra, without the program and the flags."""
    words = []
    arguments = iter(argv[1:])
    for word in arguments:
        if word in WITH_VALUE:
            next(arguments, None)
        elif word not in FLAGS:
            words.append(word)
    return words


def quoted(text: str) -> str:
    r"""`text` in single quotes, as a word of Hydra's grammar.

    There a backslash means itself, but before a quote it means that the quote is text, and two
    before a quote mean one. So a quote in `text` gets a backslash, and backslashes right before any
    quote are doubled: it's → 'it\'s', it\'s → 'it\\\'s', C:\runs\ → 'C:\runs\\'.
    """
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    text = re.sub(r"(\\+)$", r"\1\1", text)
    return f"'{text}'"


def as_typed(argv: Sequence[str]) -> str:
    """A command line for Hydra as one types it, without what rlx has added."""
    words = [word.lstrip("+") for word in argv[1:] if word not in QUIET]
    line = " ".join([argv[0], *map(shlex.quote, words)])
    folder_here = shlex.join(["--config-dir", str(Path.cwd() / "conf")])
    return line.replace(f" {folder_here}", "")


def load_command(name: str) -> Any:
    """The command of this name; ImportError where there is none.

    Found when it is asked for: commands import what composes them.
    """
    return importlib.import_module(f"rlx.commands.{name}").main


def task_overrides() -> list[str]:
    """The overrides of the running job, as Hydra takes them."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task)


def overrides_text() -> str:
    """The overrides of the running job, as one would type them."""
    words = []
    for override in task_overrides():
        words.append(override.lstrip("+").replace("\\:", ":"))  # Hydra escapes 0:5
    return " ".join(shlex.quote(word) for word in words)


def chosen(group: str) -> str:
    """The option of a config group that the running command was given, as in "cartpole"."""
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().runtime.choices[group])


def compose_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """The composed conf/`name`.yaml, outside of a command; raises Hydra's errors.

    Afterwards `chosen` answers for this config, as it does within a command.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    from rlx import user_options

    user_options.register()
    running = GlobalHydra.instance().hydra  # a command's, or that of a user's own program
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(conf_dir(), version_base="1.3"):
            config = hydra.compose(name, list(overrides), return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = running
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    rename_keys(config, overrides)
    return config


@contextmanager
def hydra_left_as_it_is() -> Iterator[None]:
    """Let `chosen` answer for another config within, and for that of before behind it."""
    from hydra.core.hydra_config import HydraConfig

    config = HydraConfig.instance().cfg
    try:
        yield
    finally:
        HydraConfig.instance().cfg = config
