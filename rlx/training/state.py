"""Everything that decides a training's future, as tensors and counters, and back again."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlx.errors import ConfigError
from rlx.experiment import compile_mode
from rlx.nn.seed_axis import concatenated
from rlx.training import compiling, journal

if TYPE_CHECKING:
    from rlx.training.loop import Training


def tensors(training: "Training") -> dict[str, Tensor]:
    """The state of a training as tensors [S, …] under dotted names.

    The policy and the replays are left out: a checkpoint holds these in other files.
    """
    agent = training.agent
    left_out = {f"policy.{name}" for name in agent.policy.state_dict()}
    left_out |= journal.ring_names(agent)
    agent_state = {
        name: value for name, value in agent.state_dict().items() if name not in left_out
    }
    parts: dict[str, Mapping[str, Tensor]] = {
        "agent": agent_state,
        "env": training.env.state_dict(),
        "loop": {
            "obs": training.obs,
            "first": training.first,
            "running": training.running,
            "last": training.last,
        },
        "carry": training.carry,
        "log": training.log.state_dict(),
        "kept": training.kept.state_dict(),
        "stop": {} if training.stop is None else training.stop.state_dict(),
    }
    result = {}
    for part, values in parts.items():
        for name, value in values.items():
            result[f"{part}.{name}"] = value
    return result


def load(
    training: "Training",
    counters: Mapping[str, Any],
    policy: Mapping[str, Tensor],
    saved: Mapping[str, Tensor],
    parts: Iterable[tuple[str, Mapping[str, Tensor]]],
) -> None:
    """Make a new training what it was at a checkpoint.

    `counters`: the content of state.json; `policy` and `saved`: the tensors of the checkpoint's two
    files; `parts`: the parts of the replays, in order. ConfigError where they do not fit.
    """
    data = training.data
    if data is not None and not data.is_of(counters.get("data")):
        raise ConfigError(
            f"data={training.config.data}: is not what the run has learnt from; "
            "it was changed or replaced."
        )
    device = training.device
    loop = _part(saved, "loop", device)
    if len(loop["running"]) < len(training.seeds):
        training.take(loop["running"])
    training.obs = loop["obs"]
    training.first = loop["first"]
    training.running = loop["running"]
    training.last = loop["last"].cpu()
    training.carry = _part(saved, "carry", device)
    agent = _part(saved, "agent", device)
    agent |= {f"policy.{name}": value for name, value in policy.items()}
    _load_agent(training, agent)
    for name, rows in parts:
        journal.restore(training.agent, name, rows)
        training.journal.add(name, rows)
    training.part_sums = dict(counters["replay"])
    training.env.load_state_dict(_part(saved, "env", device))
    training.log.load_state_dict(_part(saved, "log", device))
    training.kept.load_state_dict(_part(saved, "kept", torch.device("cpu")))
    if training.stop is not None:
        training.stop.load_state_dict(_part(saved, "stop", torch.device("cpu")))
    if compile_mode(training.config.device) == "auto":
        # Runs of earlier versions were not compiled.
        compiled = counters.get("compiled", False)
        training.compiles = compiling.still_wanted(training, compiled)
    training.step = counters["step"]
    training.evaluated = counters["evaluated"]
    training.wall_s = counters["wall_s"]
    training.saved = training.step


def join(whole: "Training", first: "Training", second: "Training") -> None:
    """Make a new training `whole` of two that are at the same step: the seeds of both in a row.

    With a stop rule, the training that ended earlier has no seeds that still learn.
    """
    policy = concatenated(first.agent.policy.state_dict(), second.agent.policy.state_dict())
    first_tensors = tensors(first)
    second_tensors = tensors(second)
    for name in first_tensors.keys() - second_tensors.keys():
        if name.startswith("log.metrics."):
            # All seeds of `second` stopped before they learnt: it has no metrics.
            del first_tensors[name]
    saved = concatenated(first_tensors, second_tensors)
    saved["loop.running"] = torch.cat([first.running, second.running + len(first.seeds)])
    counters = {
        "step": max(first.step, second.step),
        "evaluated": max(first.evaluated, second.evaluated),
        "wall_s": first.wall_s + second.wall_s,
        "replay": {},
        "data": whole.fingerprint,
        "compiled": first.compiles,
    }
    load(whole, counters, policy, saved, ())
    # `load` reads replays from the parts on disk, which a new run does not have. Both agents are in
    # memory with theirs, so that the whole state_dict, replays included, can be put side by side.
    agent = concatenated(first.agent.state_dict(), second.agent.state_dict())
    whole.agent.load_state_dict(agent)
    whole.saved = -1  # `whole` is on no disk yet


def take_part(part: "Training", whole: "Training", rows: Sequence[int]) -> None:
    """Make a new training `part` what the seeds at `rows` of the training `whole` are by now."""
    places = {row: place for place, row in enumerate(whole.running.tolist())}
    # On the CPU: such an index picks from a tensor of any device, and agents have some on the CPU.
    running = torch.tensor([places[row] for row in rows])
    copies = torch.arange(whole.num_envs)
    of_env = (running.unsqueeze(1) * whole.num_envs + copies).flatten()
    everyone = torch.tensor(rows)
    saved = {}
    for name, tensor in tensors(whole).items():
        index = running
        if name.startswith("env."):
            index = of_env
        elif name.startswith("kept.") or name == "loop.last":  # of those that stopped, too
            index = everyone
        saved[name] = tensor[index]
    saved["loop.running"] = torch.arange(len(rows))
    policy = {name: value[running] for name, value in whole.agent.policy.state_dict().items()}
    counters = {
        "step": whole.step,
        "evaluated": whole.evaluated,
        "wall_s": whole.elapsed() * len(rows) / len(whole.seeds),
        "replay": {},
        "data": whole.fingerprint,
        "compiled": whole.compiles,
    }
    load(part, counters, policy, saved, ())
    agent = {name: value[running] for name, value in whole.agent.state_dict().items()}
    part.agent.load_state_dict(agent)
    part.saved = -1  # `part` is on no disk yet


def disk_size(training: "Training") -> int:
    """Bytes that a training's checkpoints take at most."""
    steps = training.config.steps
    between = training.config.checkpoint_every
    policy = _bytes(training.agent.policy.state_dict())
    training_state = _bytes(tensors(training))
    # The newest two checkpoints have the state of the training, and so has the one being written.
    checkpoints = (steps // between + 5) * policy + 3 * training_state
    return int(checkpoints + journal.disk_size(training.agent, between, steps))


def _part(saved: Mapping[str, Tensor], part: str, device: torch.device) -> dict[str, Tensor]:
    """The tensors whose names begin with `part` and a dot, on the device, without that prefix."""
    prefix = f"{part}."
    values = {}
    for name, value in saved.items():
        if name.startswith(prefix):
            values[name.removeprefix(prefix)] = value.to(device)
    return values


def _load_agent(training: "Training", saved: dict[str, Tensor]) -> None:
    """Load an agent's tensors `saved`, which lack its replays; these stay as they are.

    ConfigError where the agent has other tensors.
    """
    agent = training.agent.state_dict()
    rings = {name: agent[name] for name in journal.ring_names(training.agent)}
    saved = saved | rings
    unmatched = sorted(saved.keys() ^ agent.keys())
    if unmatched:
        verb = "has an unknown" if unmatched[0] in saved else "lacks"
        raise ConfigError(
            f"run: its checkpoint {verb} '{unmatched[0]}'; it is of another version of this agent "
            "and cannot be resumed."
        )
    training.agent.load_state_dict(saved)


def _bytes(values: Mapping[str, Tensor]) -> int:
    """Bytes that some tensors take in memory."""
    return sum(tensor.nbytes for tensor in values.values())
