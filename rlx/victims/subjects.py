"""Whose policies a command plays: trainings of rlx, or files of others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from rlx.command import RunConfig, pin_runs
from rlx.config import plain
from rlx.errors import ConfigError
from rlx.runs.finding import find_all
from rlx.runs.run import Run
from rlx.victims.files import Victims

if TYPE_CHECKING:
    import torch

    from rlx.policies import Opened


@dataclass(frozen=True, kw_only=True)
class SubjectConfig(RunConfig):
    """The keys of every command that plays trainings, or policies of others."""

    victim: Any
    """Policies that rlx did not train, one or a list: sb3:FILE.zip, torchscript:FILE.pt,
    onnx:FILE.onnx, FILE.py:FUNCTION. Each file is a seed. null: `run` says whose."""
    vecnormalize: Any
    """The npz files by which sb3 models normalise observations; null: one beside the model, if any;
    false: they see raw ones."""
    activation: str | None
    """What stands between the layers of sb3 models; null: what the file says."""
    env: Any = None
    """The env that the victim plays in: a file of conf/env."""


@dataclass(frozen=True)
class Subjects:
    """The policies that a command was given: of `runs`, or of `victims`."""

    runs: Sequence[Run]
    victims: Victims | None

    @classmethod
    def of(cls, config: SubjectConfig) -> "Subjects":
        """What the keys of a command name; ConfigError where there is no such run or file."""
        if config.victim is None:
            for key in ("env", "vecnormalize", "activation"):
                if getattr(config, key) is not None:
                    raise ConfigError(
                        f"{key}: the run's own; it goes with victim=…, not with run=…."
                    )
            return cls(find_all(config.run, config.outputs, trusted=config.trust), None)
        if config.run is not None:
            raise ConfigError(f"victim={config.victim}: give a run or a victim, not both.")
        victims = Victims.of(config.victim, config.env, config.vecnormalize, config.activation)
        return cls((), victims)

    @property
    def name(self) -> str:
        """Agent and env, as in "dqn-acrobot"; it names the folder of results."""
        return self.runs[0].path.parent.name if self.victims is None else self.victims.name

    @property
    def paths(self) -> list[str]:
        """Where the policies are from: directories of runs, or victims as they are named."""
        if self.victims is None:
            return [str(run.path) for run in self.runs]
        return [str(file) for file in self.victims.files]

    @property
    def told(self) -> dict[str, str]:
        """What a command's first line says of them."""
        return {"run" if self.victims is None else "victim": ", ".join(self.paths)}

    def open(self, checkpoint: str, device: "torch.device", seeds: object) -> "Opened":
        """The policies, and their env; see `open_runs` and `open_victims`."""
        if self.victims is None:
            from rlx.policies import open_runs

            return open_runs(self.runs, checkpoint, device, seeds)
        if checkpoint != "best":
            raise ConfigError(f"checkpoint={checkpoint}: a victim's file has no checkpoints.")
        from rlx.victims.opening import open_victims

        return open_victims(self.victims, device, seeds)

    def attacking_device(self, node: Mapping[str, Any]) -> "torch.device":
        """The device, of the config group `device`, to attack them on.

        Where it leaves that open, a GPU is for images. Other policies are so small that a core of a
        CPU has searched before a GPU has been told of all operations: docs/results/gpu.md.
        """
        from rlx.experiment import env_spec, setup_device
        from rlx.nn.encoders import is_image

        device = setup_device(node)
        if device.type == "cpu" or node["name"] != "auto" or node.get("index") is not None:
            return device
        env = self.runs[0].config.env if self.victims is None else self.victims.env
        if is_image(env_spec(env).observation_space.shape):
            return device
        return setup_device({**node, "name": "cpu"})

    def create(self, outputs: str, command: str, composed: DictConfig, opened: "Opened") -> Run:
        """A new run of a command on these policies; meta.json has the checksums of what it played.

        They are of each victim's file, or of the weights of each seed.
        """
        run = Run.create(outputs, command, self.name, composed)
        if self.victims is None:
            run.write_meta(weights=opened.weights)
        else:
            run.write_meta(victims=self.victims.hashes)
        return run


def pin_subjects(composed: DictConfig) -> DictConfig:
    """The config of a command on runs or victims with these as they are found from any folder."""
    if composed.victim is None:
        return pin_runs(composed)
    keys = plain(composed)
    victims = Victims.of(keys["victim"], keys.get("env"), keys["vecnormalize"], keys["activation"])
    pinned = composed.copy()
    pinned.update(victims.keys())
    return pinned
