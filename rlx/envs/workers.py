"""Copies of a slow env shared out among processes."""

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from rlx.agent import Feature, Rules
from rlx.env import TensorEnv, resize, spread
from rlx.errors import ConfigError, RunError
from rlx.nn.seed_axis import concatenated

MakeEnv = Callable[..., TensorEnv]
"""Called with num_envs and device; must be picklable."""


class Workers(VectorEnv):
    """`num_envs` copies in `workers` processes: a `TensorEnv`, to the bit what `make` gives in one.

    The processes have equal parts of the copies. A copy stays in its process when `keep` puts the
    copies in another order.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}
    rules: Rules | None = None
    grid: tuple[int, int] | None = None
    features: Mapping[str, Feature] | None = None

    def __init__(self, make: MakeEnv, num_envs: int, workers: int, device: torch.device | str):
        # Made here first, where its errors are raised at once.
        env = make(num_envs=1, device="cpu")
        self.single_observation_space = env.single_observation_space
        self.single_action_space = env.single_action_space
        self.max_episode_steps = env.max_episode_steps
        self.reward_threshold = env.reward_threshold
        self.observation_units = env.observation_units
        self.angles = env.angles
        self.lowest_reward = env.lowest_reward
        self.truncation_is_harm = env.truncation_is_harm
        self.device = torch.device(device)
        parts = np.array_split(np.arange(num_envs), min(workers, num_envs))
        self.rows = [part.tolist() for part in parts]
        """Per process, the rows that its copies have among all B copies."""
        # A fork of a process with torch in it may hang.
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        for rows in self.rows:
            pipe, worker_pipe = context.Pipe()
            arguments = (make, len(rows), worker_pipe)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            worker_pipe.close()
            self.pipes.append(pipe)
            self.processes.append(process)
        resize(self, num_envs)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict]:
        """First observations [B, *O], as `rlx.envs.gym.GymEnv.reset`."""
        seeds = spread(seed, self.num_envs)
        shared_options = dict(options or {})
        mask = shared_options.pop("reset_mask", None)
        arguments = []
        for rows in self.rows:
            part_options = dict(shared_options)
            if mask is not None:
                part_options["reset_mask"] = np.asarray(mask, bool)[rows]
            arguments.append(([seeds[row] for row in rows], part_options))
        return self._joined(self._ask("reset", arguments)), {}

    def step(
        self, actions: Tensor | np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """As `TensorEnv.step`."""
        array = np.asarray(torch.as_tensor(actions).cpu())
        answers = self._ask("step", [array[rows] for rows in self.rows])
        columns = [self._joined(column) for column in zip(*answers, strict=True)]
        obs, reward, terminated, truncated, final = columns
        info = {"final_obs": final, "_final_obs": terminated | truncated}
        return obs, reward, terminated, truncated, info

    def keep(self, index: Tensor) -> None:
        """Go on with the copies `index` (int64 [B']) only, in that order."""
        wanted = index.tolist()
        pipes: list[Connection] = []
        processes: list[Any] = []
        new_rows: list[list[int]] = []
        kept: list[list[int]] = []
        for pipe, process, rows in zip(self.pipes, self.processes, self.rows, strict=True):
            new = [new_row for new_row, row in enumerate(wanted) if row in rows]
            # A process without copies ends, since its pipe is dropped here.
            if new:
                pipes.append(pipe)
                processes.append(process)
                new_rows.append(new)
                kept.append([rows.index(wanted[new_row]) for new_row in new])
        self.pipes = pipes
        self.processes = processes
        self.rows = new_rows
        self._ask("keep", kept)
        resize(self, len(wanted))

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that decides the copies' future: tensors [B, …]."""
        states = [
            {name: torch.from_numpy(array) for name, array in state.items()}
            for state in self._ask("state_dict", [None] * len(self.rows))
        ]
        joined = reduce(concatenated, states)
        positions = self._positions()
        return {name: value[positions].to(self.device) for name, value in joined.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from where `state_dict()` was taken."""
        arrays = {name: value.cpu().numpy() for name, value in state.items()}
        parts = [{name: array[rows] for name, array in arrays.items()} for rows in self.rows]
        self._ask("load_state_dict", parts)

    def close_extras(self, **kwargs: Any) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.close()

    def _ask(self, method: str, arguments: Sequence[Any]) -> list[Any]:
        """The answers of all processes, which work at the same time, to a method's `arguments`.

        `arguments`: one for each process. An error in a process is raised here.
        """
        answers: list[tuple[Any, Exception | None]] = []
        try:
            for pipe, argument in zip(self.pipes, arguments, strict=True):
                pipe.send((method, argument))
            for pipe, process in zip(self.pipes, self.processes, strict=True):
                # What the env has started there may keep a dead process's end of the pipe open.
                while not pipe.poll(1):
                    if not process.is_alive():
                        raise EOFError
                answers.append(pipe.recv())
        except (EOFError, OSError):
            codes = ", ".join(f"exit code {process.exitcode}" for process in self._dead())
            raise RunError(f"env.workers: a process with env copies has died, {codes}.") from None
        for rows, (_, failure) in zip(self.rows, answers, strict=True):
            if isinstance(failure, RunError) and failure.copy is not None:
                failure.copy = rows[failure.copy]
            if failure is not None:
                raise failure
        return [answer for answer, _ in answers]

    def _dead(self) -> list[Any]:
        """The processes that have ended, of which one has closed its pipe and does so by now."""
        for _ in range(300):
            dead = [process for process in self.processes if not process.is_alive()]
            if dead:
                break
            time.sleep(0.1)
        return dead

    def _joined(self, parts: Sequence[np.ndarray]) -> Tensor:
        """The rows of all processes, in the order of the copies: a tensor [B, …]."""
        return torch.from_numpy(np.concatenate(parts)[self._positions()]).to(self.device)

    def _positions(self) -> np.ndarray:
        """int64 [B]: where each copy's row is when those of one process follow those of another.

        It is not always the copy's own number: after a `keep` in another order the copies of a
        process need not follow one another.
        """
        return np.argsort([row for rows in self.rows for row in rows])


def _serve(make: MakeEnv, num_envs: int, pipe: Connection) -> None:
    """One process: it does what it is asked until the pipe is closed."""
    # Signals to the group reach the run alone, which then wants a checkpoint of these copies.
    os.setsid()
    torch.set_num_threads(1)
    env: TensorEnv | None = None
    while True:
        try:
            method, argument = pipe.recv()
        except EOFError:
            return
        answer: Any = None
        failure: Exception | None = None
        try:
            # Made here, so that its errors are answers.
            env = env or make(num_envs=num_envs, device="cpu")
            answer = _answer(env, method, argument)
        except (ConfigError, RunError, ValueError) as error:
            # Without its cause, which may not fit through a pipe.
            failure = type(error)(str(error))
            failure.__dict__.update(error.__dict__)
        pipe.send((answer, failure))


def _answer(env: Any, method: str, argument: Any) -> Any:
    """The result of one method of `env`, as arrays."""
    if method == "reset":
        seeds, options = argument
        return env.reset(seed=seeds, options=options)[0].numpy()
    if method == "step":
        *columns, info = env.step(argument)
        return [column.numpy() for column in (*columns, info["final_obs"])]
    if method == "keep":
        return env.keep(torch.tensor(argument, dtype=torch.int64))
    if method == "state_dict":
        return {name: tensor.numpy() for name, tensor in env.state_dict().items()}
    return env.load_state_dict({name: torch.from_numpy(array) for name, array in argument.items()})
