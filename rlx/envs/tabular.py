"""Gymnasium's grids (Taxi, FrozenLake, CliffWalking, …) stepped in batches, from their own transition tables."""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlx.envs.batched import Dynamics, register
from rlx.errors import ConfigError
from rlx.names import nearest


@dataclass(frozen=True)
class Tabular(Dynamics):
    """Any env with the transition table `P` of Gymnasium's toy_text family. State [B, 1]: the number of the state."""

    id: str
    kwargs: Any

    max_episode_steps = 500
    """Where Gymnasium has no limit: it has none for CliffWalking."""
    initial_draws = 1
    transition_draws = 1

    def __post_init__(self) -> None:
        if self.id not in gymnasium.registry:
            raise ConfigError(
                f"env.id={self.id}: not registered with Gymnasium.{nearest(self.id, gymnasium.registry)}"
            )
        try:
            env = gymnasium.make(self.id, **(self.kwargs or {}))
        except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
            raise ConfigError(f"env.id={self.id}: Gymnasium cannot make it ({error}).") from None
        model: Any = env.unwrapped
        if not hasattr(model, "P") or not hasattr(model, "initial_state_distrib"):
            raise ConfigError(
                f"env.id={self.id}: has no transition table; use env=gym env.id={self.id}."
            )
        states, actions = int(env.observation_space.n), int(env.action_space.n)  # type: ignore[attr-defined]
        outcomes = max(len(branch) for row in model.P.values() for branch in row.values())
        table = np.zeros(
            (4, states, actions, outcomes)
        )  # probability, next state, reward, terminated
        for state, row in model.P.items():
            for action, branch in row.items():
                table[:, state, action, : len(branch)] = np.array(branch, dtype=np.float64).T
        tables = {
            "bounds": torch.from_numpy(table[0].cumsum(-1)[..., :-1].astype(np.float32)),
            "next": torch.from_numpy(table[1].astype(np.int64)),
            "reward": torch.from_numpy(table[2].astype(np.float32)),
            "terminated": torch.from_numpy(table[3].astype(bool)),
            "initial": torch.from_numpy(
                np.cumsum(model.initial_state_distrib)[:-1].astype(np.float32)
            ),
        }
        shape = getattr(
            model, "shape", (model.nrow, model.ncol) if hasattr(model, "nrow") else None
        )
        own = {
            "observation_space": env.observation_space,
            "action_space": env.action_space,
            "grid": shape,
            "_tables": {"cpu": tables},
        }
        own |= {"reward_threshold": env.spec.reward_threshold if env.spec else None}
        if env.spec and env.spec.max_episode_steps:
            own["max_episode_steps"] = env.spec.max_episode_steps
        for name, value in own.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_keywords(cls, table: str, **kwargs: Any) -> "Tabular":  # type: ignore[override]
        """Gymnasium's env `table`, with its own keywords."""
        return cls(table, kwargs)

    def tables(self, device: torch.device) -> dict[str, Tensor]:
        """bounds [O, A, K − 1] (cumulative probabilities of the K outcomes), next, reward, terminated [O, A, K], initial [O − 1]."""
        kept = self._tables  # type: ignore[attr-defined]
        if str(device) not in kept:
            kept[str(device)] = {name: value.to(device) for name, value in kept["cpu"].items()}
        return kept[str(device)]

    def initial(self, draws: Tensor) -> Tensor:
        return torch.searchsorted(
            self.tables(draws.device)["initial"], draws[:, 0].contiguous(), right=True
        ).unsqueeze(-1)

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        tables, place = self.tables(state.device), (state[:, 0], action)
        outcome = (draws >= tables["bounds"][place]).sum(-1)
        return (
            tables["next"][*place, outcome].unsqueeze(-1),
            tables["reward"][*place, outcome],
            tables["terminated"][*place, outcome],
        )

    def observe(self, state: Tensor) -> Tensor:
        return state[:, 0]


for _spec in list(gymnasium.registry.values()):
    if _spec.name != "Blackjack" and str(_spec.entry_point).startswith("gymnasium.envs.toy_text."):
        _known = (_spec.max_episode_steps, _spec.reward_threshold)
        register(f"rlx/{_spec.id}", Tabular, *_known, table=_spec.id)
