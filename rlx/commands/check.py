"""Try an agent or an env, yours or rlx's, against everything that rlx asks of it."""

from collections.abc import Iterable

from omegaconf import DictConfig

from rlx.command import command
from rlx.composing import compose_config
from rlx.config import plain
from rlx.errors import ConfigError, RunError
from rlx.names import describe_error
from rlx.show import console


@command("check")
def main(composed: DictConfig) -> None:
    """Prints what holds; ConfigError at the first thing that does not."""
    agent = composed.get("agent")
    env = composed.get("env")
    if agent is None and env is None:
        raise ConfigError("rlx check: name what to try, as in agent=mine, env=mine, or both.")

    from rlx.checks.agents import agent_checks, fitting
    from rlx.checks.envs import env_checks

    if env is not None:
        _tell("env", env_checks(plain(env)))
    if agent is not None:
        if env is None:
            env = compose_config("train", [f"env={fitting(agent)}"]).env
        _tell("agent", agent_checks(plain(agent), plain(env)))


def _tell(part: str, checks: Iterable[str]) -> None:
    """Print a line for each of the `checks` of the agent or env, as soon as it is passed.

    ConfigError at the first that is not, and where the class raises something.
    """
    try:
        for sentence in checks:
            console.facts(**{part: f"ok: {sentence}"})
    except (ConfigError, RunError):
        raise
    except Exception as error:  # whatever somebody's class raises
        raise ConfigError(f"{part}: raised {describe_error(error)}") from error
