"""Train an agent on an env, many seeds at once, and keep each seed's best weights."""

from omegaconf import DictConfig

from rlx.command import command
from rlx.conf import group_files
from rlx.config import build, check_protocol, chosen, parse_seeds
from rlx.errors import ConfigError
from rlx.names import nearest
from rlx.runs.files import require_room
from rlx.runs.run import Run
from rlx.show import report
from rlx.training.config import Config


def check(composed: DictConfig) -> None:
    """Raise what is wrong with a training's config, as far as one seed of it tells."""
    config = build(Config, composed, "")
    check_protocol(config.protocol)
    settings()

    from rlx.experiment import validated
    from rlx.training.loop import Training

    one = validated(composed)
    one.seeds = parse_seeds(config.seeds)[:1]
    Training(build(Config, one, ""), run_name(config))


@command("train", check)
def main(composed: DictConfig) -> float:
    """Returns the interquartile mean of the last evaluation, for sweepers."""
    config = build(Config, composed, "")
    check_protocol(config.protocol)
    name = run_name(config)
    report.start(train=name, settings=settings())

    from rlx.experiment import validated
    from rlx.training.loop import Training

    composed = validated(composed)
    training = Training(build(Config, composed, ""), name)
    require_room(config.outputs, training.disk_size())
    return training.run(Run.create(config.outputs, "train", name, composed))


def run_name(config: Config) -> str:
    """Agent and env, as in "dqn-cartpole"; of Gymnasium's and Atari's envs the id or the game."""
    env = chosen("env")
    if env in ("gym", "atari"):
        env = str(config.env.get("id", config.env.get("game"))).replace("/", "-")
    return f"{chosen('agent')}-{env}"


def settings() -> str:
    """Which tuned settings the run has; ConfigError where some were asked for that do not exist."""
    wanted, files = chosen("tuned"), group_files("tuned")
    if wanted in files:
        own = wanted == f"{chosen('agent')}-{chosen('env')}"
        return f"tuned/{wanted}" + ("" if own else ", which was tuned for another agent or env")
    if wanted not in (f"{chosen('agent')}-{chosen('env')}", "none"):
        raise ConfigError(f"tuned={wanted}: no such settings.{nearest(wanted, files)}")
    if wanted == "none":
        return f"defaults of {chosen('agent')} (tuned=none)"
    return f"defaults of {chosen('agent')}, which nobody tuned for {chosen('env')}"
