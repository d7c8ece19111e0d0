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

from rlx.env import TensorEnv, resize, spread
from rlx.errors import ConfigError, RunError
from rlx.nn.seed_axis import concatenated

MakeEnv = Callable[..., TensorEnv]
"""Called with num_envs and device; must be picklable."""


class Workers(VectorEnv):
    """`num_envs` copies in `workers` processes; to the bit what `make` gives in one. Copies lie in the processes in equal parts, and
    stay where they are when `keep` puts them in another order."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}

    def __init__(self, make: MakeEnv, num_envs: int, workers: int, device: torch.device | str):
        spec: Any = make(num_envs=1, device="cpu")  # errors appear here
        self.single_observation_space, self.single_action_space = (
            spec.single_observation_space,
            spec.single_action_space,
        )
        self.max_episode_steps, self.reward_threshold = (
            spec.max_episode_steps,
            spec.reward_threshold,
        )
        self.device = torch.device(device)
        self.place = [
            part.tolist() for part in np.array_split(np.arange(num_envs), min(workers, num_envs))
        ]
        """Per process, which rows of the whole its copies are."""
        context = multiprocessing.get_context(
            "spawn"
        )  # a fork of a process with torch in it may hang
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        for rows in self.place:
            own, other = context.Pipe()
            process = context.Process(target=_serve, args=(make, len(rows), other), daemon=True)
            process.start()
            other.close()
            self.pipes.append(own)
            self.processes.append(process)
        resize(self, num_envs)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict]:
        """First observations [B, *O], as `rlx.envs.gym.GymEnv.reset`."""
        given, own = spread(seed, self.num_envs), dict(options or {})
        mask = own.pop("reset_mask", None)
        each = []
        for rows in self.place:
            masked = {} if mask is None else {"reset_mask": np.asarray(mask, bool)[rows]}
            each.append(([given[i] for i in rows], own | masked))
        return self._whole(self._ask("reset", each)), {}

    def step(
        self, actions: Tensor | np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """As `TensorEnv.step`."""
        given = np.asarray(torch.as_tensor(actions).cpu())
        answers = self._ask("step", [given[rows] for rows in self.place])
        obs, reward, terminated, truncated, final = (
            self._whole(column) for column in zip(*answers, strict=True)
        )
        info = {"final_obs": final, "_final_obs": terminated | truncated}
        return obs, reward, terminated, truncated, info

    def keep(self, index: Tensor) -> None:
        """Go on with the copies `index` (int64 [B']) only, in that order."""
        wanted = index.tolist()
        kept = [
            [(new, rows.index(old)) for new, old in enumerate(wanted) if old in rows]
            for rows in self.place
        ]
        busy = [i for i, part in enumerate(kept) if part]
        self.pipes = [self.pipes[i] for i in busy]  # a process whose pipe is gone ends
        self.processes = [self.processes[i] for i in busy]
        self.place = [[new for new, _ in kept[i]] for i in busy]
        self._ask("keep", [[row for _, row in kept[i]] for i in busy])
        resize(self, len(wanted))

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that decides the copies' future: tensors [B, …]."""
        states = self._ask("state_dict", [None] * len(self.place))
        whole = reduce(
            concatenated,
            ({name: torch.from_numpy(array) for name, array in state.items()} for state in states),
        )
        return {name: value[self._order()].to(self.device) for name, value in whole.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict()` was taken."""
        self._ask(
            "load_state_dict",
            [
                {name: value.cpu().numpy()[rows] for name, value in state.items()}
                for rows in self.place
            ],
        )

    def close_extras(self, **kwargs: Any) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.close()

    def _ask(self, what: str, each: Sequence[Any]) -> list[Any]:
        """Answers of all processes, which work at once; what went wrong in one is raised here."""
        answers: list[tuple[Any, Exception | None]] = []
        try:
            for pipe, value in zip(self.pipes, each, strict=True):
                pipe.send((what, value))
            for pipe in self.pipes:
                answers.append(pipe.recv())
        except (EOFError, ConnectionError):
            dead = self.processes[len(answers)]
            dead.join(1)
            how = f"exit code {dead.exitcode}"
            raise RunError(f"env.workers: a process with env copies has died, {how}.") from None
        for _, failure in answers:
            if failure is not None:
                raise failure
        return [answer for answer, _ in answers]

    def _whole(self, parts: Sequence[np.ndarray]) -> Tensor:
        """The processes' rows in the order of the whole."""
        return torch.from_numpy(np.concatenate(parts)[self._order()]).to(self.device)

    def _order(self) -> np.ndarray:
        return np.argsort([row for rows in self.place for row in rows])


def _serve(make: MakeEnv, num_envs: int, pipe: Connection) -> None:
    """One process: does what it is asked until the pipe is closed."""
    os.setsid()  # signals to the group reach the run alone, which then wants a checkpoint of these copies
    torch.set_num_threads(1)
    env: TensorEnv | None = None
    while True:
        try:
            what, value = pipe.recv()
        except EOFError:
            return
        answer: Any = None
        failure: Exception | None = None
        try:
            env = env or make(
                num_envs=num_envs, device="cpu"
            )  # here, so that its errors are answers
            answer = _answer(env, what, value)
        except (ConfigError, RunError, ValueError) as error:
            failure = type(error)(str(error))  # without its cause, which may not fit through a pipe
        pipe.send((answer, failure))


def _answer(env: Any, what: str, value: Any) -> Any:
    """The result of one method, as arrays."""
    if what == "reset":
        seeds, options = value
        return env.reset(seed=seeds, options=options)[0].numpy()
    if what == "step":
        *columns, info = env.step(value)
        return [column.numpy() for column in (*columns, info["final_obs"])]
    if what == "keep":
        return env.keep(torch.tensor(value, dtype=torch.int64))
    if what == "state_dict":
        return {name: tensor.numpy() for name, tensor in env.state_dict().items()}
    return env.load_state_dict({name: torch.from_numpy(array) for name, array in value.items()})
