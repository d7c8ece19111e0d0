"""Copies of a slow env shared out among processes."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from functools import reduce
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from rlx.config import RunError
from rlx.env import TensorEnv, resize
from rlx.networks import concatenated

MakeEnv = Callable[..., TensorEnv]
"""Called with num_envs and device; must be picklable."""


class Workers(VectorEnv):
    """`num_envs` copies in `workers` processes; to the bit what `make` gives in one. Copies lie in the processes in equal parts, and
    stay where they are when `keep` puts them in another order."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}

    def __init__(self, make: MakeEnv, num_envs: int, workers: int, device: torch.device | str):
        spec: Any = make(num_envs=1, device="cpu")  # errors appear here
        self.single_observation_space, self.single_action_space = spec.single_observation_space, spec.single_action_space
        self.max_episode_steps, self.reward_threshold = spec.max_episode_steps, spec.reward_threshold
        self.device = torch.device(device)
        self.place = [part.tolist() for part in np.array_split(np.arange(num_envs), min(workers, num_envs))]
        """Per process, which rows of the whole its copies are."""
        context = multiprocessing.get_context("spawn")  # a fork of a process with torch in it may hang
        self.pipes: list[Connection] = []
        for rows in self.place:
            own, other = context.Pipe()
            context.Process(target=_serve, args=(make, len(rows), other), daemon=True).start()
            other.close()
            self.pipes.append(own)
        resize(self, num_envs)

    def reset(self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict]:
        """First observations [B, *O], as `rlx.envs.gym.GymEnv.reset`."""
        seeds = list(range(seed, seed + self.num_envs)) if isinstance(seed, int) else seed
        return self._whole(self._ask("reset", [None if seeds is None else [seeds[i] for i in rows] for rows in self.place])), {}

    def step(self, actions: Tensor | np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """As `TensorEnv.step`."""
        given = np.asarray(torch.as_tensor(actions).cpu())
        answers = self._ask("step", [given[rows] for rows in self.place])
        obs, reward, terminated, truncated, final = (self._whole(column) for column in zip(*answers, strict=True))
        return obs, reward, terminated, truncated, {"final_obs": final}

    def keep(self, index: Tensor) -> None:
        """Go on with the copies `index` (int64 [B']) only, in that order."""
        wanted = index.tolist()
        kept = [[(new, rows.index(old)) for new, old in enumerate(wanted) if old in rows] for rows in self.place]
        busy = [i for i, part in enumerate(kept) if part]
        self.pipes = [self.pipes[i] for i in busy]  # a process whose pipe is gone ends
        self.place = [[new for new, _ in kept[i]] for i in busy]
        self._ask("keep", [[row for _, row in kept[i]] for i in busy])
        resize(self, len(wanted))

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that decides the copies' future: tensors [B, …]."""
        states = self._ask("state_dict", [None] * len(self.place))
        whole = reduce(concatenated, ({name: torch.from_numpy(array) for name, array in state.items()} for state in states))
        return {name: value[self._order()].to(self.device) for name, value in whole.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict()` was taken."""
        self._ask("load_state_dict", [{name: value.cpu().numpy()[rows] for name, value in state.items()} for rows in self.place])

    def close_extras(self, **kwargs: Any) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.close()

    def _ask(self, what: str, each: Sequence[Any]) -> list[Any]:
        """Answers of all processes, which work at the same time."""
        try:
            for pipe, value in zip(self.pipes, each, strict=True):
                pipe.send((what, value))
            return [pipe.recv() for pipe in self.pipes]
        except (EOFError, ConnectionError):
            raise RunError("env.workers: a process with env copies has died; its error stands above.") from None

    def _whole(self, parts: Sequence[np.ndarray]) -> Tensor:
        """The processes' rows in the order of the whole."""
        return torch.from_numpy(np.concatenate(parts)[self._order()]).to(self.device)

    def _order(self) -> np.ndarray:
        return np.argsort([row for rows in self.place for row in rows])


def _serve(make: MakeEnv, copies: int, pipe: Connection) -> None:
    """One process: does what it is asked until the pipe is closed."""
    os.setsid()  # signals to the group reach the run alone, which then wants a checkpoint of these copies
    torch.set_num_threads(1)
    env = make(num_envs=copies, device="cpu")
    while True:
        try:
            what, value = pipe.recv()
        except EOFError:
            return
        answer: Any = None
        if what == "reset":
            answer = env.reset(seed=value)[0].numpy()
        elif what == "step":
            *columns, info = env.step(value)
            answer = [column.numpy() for column in (*columns, info["final_obs"])]
        elif what == "keep":
            env.keep(torch.tensor(value, dtype=torch.int64))
        elif what == "state_dict":
            answer = {name: tensor.numpy() for name, tensor in env.state_dict().items()}
        else:
            env.load_state_dict({name: torch.from_numpy(array) for name, array in value.items()})
        pipe.send(answer)
