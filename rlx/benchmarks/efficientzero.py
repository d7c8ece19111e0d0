"""What EfficientZero spends its time on."""

from dataclasses import dataclass

from rlx.benchmarks.own import Training
from rlx.benchmarks.timing import steps_per_s, watch


@dataclass(frozen=True)
class Times:
    """Milliseconds of EfficientZero's parts, a mean over calls, and its speed."""

    learner_step: float
    """One update of all seeds, with all its parts."""
    search: float
    """The policy targets of an update, by a search."""
    value_targets: float
    """The value targets of an update."""
    act: float
    """The decisions of one vector step."""
    steps_per_s: float
    """Environment steps per second and seed."""

    @property
    def training(self) -> float:
        """What is left of an update: the losses, their gradient and the optimiser's step."""
        return self.learner_step - self.search - self.value_targets


def measure(training: Training, learning_starts: int, seconds: float) -> Times:
    """The times of `training`, once it learns: after so many transitions of each seed."""
    seeds, num_envs = training.shape
    for _ in range(-(-learning_starts // num_envs)):
        training.step()
    names = ("learn", "policy_targets", "value_targets", "act")
    times = watch(training.agent, names, training.device)
    speed = steps_per_s(training.step, seconds) / seeds
    means = {name: sum(calls) / len(calls) for name, calls in times.items()}
    return Times(
        learner_step=means["learn"],
        search=means["policy_targets"],
        value_targets=means["value_targets"],
        act=means["act"],
        steps_per_s=speed,
    )
