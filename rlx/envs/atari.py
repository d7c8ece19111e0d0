"""Atari 2600 games (Bellemare et al. 2013) in the Arcade Learning Environment, as DQN sees them (Mnih et al. 2015).

An emulator's whole state is 8 kB, so a copy is such a state, and one emulator for each thread takes up one copy after the other:
loading an emulator takes longer than 200 decisions. All chance is drawn here, none in the emulator. The first picture of an
emulator that took up a state may show parts of the one before, so it is never used.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from rlx.config import Count
from rlx.env import resize, spread
from rlx.errors import ConfigError
from rlx.names import nearest
from rlx.nn.rng import stream_key, uniform

NOOP = 0
SKIP = 4
"""Frames of one decision; the last two are seen, the brighter pixel of each pair."""


class AtariEnv(VectorEnv):
    """`num_envs` copies of an Atari game: images uint8 [B, C, size, size], gray (C = 1) or red, green, blue (C = 3); the interface of
    `rlx.envs.batched.BatchedEnv`.

    A lost life is `terminated` with `life_loss`, but the game goes on. Time limit and counters are in decisions.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}
    reward_threshold = None

    def __init__(
        self, game: str, num_envs: int, max_episode_steps: Count, size: Count, gray: bool, noops: Count, fire: bool, life_loss: bool,
        clip_rewards: bool, repeat_action_probability: float, threads: Count, device: torch.device | str = "cpu",
    ):  # fmt: skip
        """The keys of conf/env/atari.yaml."""
        self.max_episode_steps, self.noops = max_episode_steps, noops
        self.life_loss, self.clip_rewards, self.stickiness = (
            life_loss,
            clip_rewards,
            repeat_action_probability,
        )
        self.channels = 1 if gray else 3
        self.device = torch.device(device)
        self._emulators, begins = zip(
            *(_emulator(game, thread) for thread in range(threads)), strict=True
        )
        self._pool = ThreadPoolExecutor(threads)
        self._begin = begins[0]
        self._actions = self._emulators[0].getMinimalActionSet()
        self._fire = next(
            (action for action in self._actions if fire and action.name == "FIRE"), NOOP
        )
        self._pixels = self._emulators[0].getScreenDims()
        self._rows, self._columns = (_overlaps(pixels, size) for pixels in self._pixels)
        self.single_observation_space = gymnasium.spaces.Box(
            0, 255, (self.channels, size, size), np.uint8
        )
        self.single_action_space = gymnasium.spaces.Discrete(len(self._actions))
        self._games = [self._begin] * num_envs
        self._key, self._counter, self._steps, self._pressed = torch.zeros(
            4, num_envs, dtype=torch.int64
        )
        self._resize()

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict]:
        """First observations [B, C, size, size].

        `seed`: one integer (copy i gets seed + i) or one per copy; None draws fresh ones.
        `options`: "reset_mask" (bool [B]): only these copies begin anew.
        """
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        mask = (options or {}).get("reset_mask")
        where = torch.as_tensor(np.ones(self.num_envs, bool) if mask is None else mask)
        key = stream_key(torch.tensor(list(spread(seed, self.num_envs))), "env")
        self._key = torch.where(where, key, self._key)
        self._counter = self._counter * ~where
        return self._start(where).to(self.device), {}

    def step(
        self, actions: Tensor | np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """(obs [B, *O], reward [B], terminated [B], truncated [B], {"final_obs": [B, *O]}) of `actions` int64 [B]."""
        pressed = self._stick(torch.as_tensor(actions).cpu()).tolist()
        rewards, (over, lost) = (
            np.zeros(self.num_envs, np.float32),
            np.zeros((2, self.num_envs), bool),
        )

        def play(ale: Any, copy: int) -> None:
            lives = ale.lives()
            for frame, action in enumerate(pressed[copy]):
                rewards[copy] += ale.act(self._actions[action])
                if frame >= SKIP - 2:
                    self._picture(ale, self._screens[copy, frame % 2])
                if ale.game_over(with_truncation=False):
                    over[copy] = True
                    return self._look(ale, copy, frame > 0)
            lost[copy] = ale.lives() < lives
            if lost[copy] and self._fire:
                rewards[copy] += ale.act(self._fire)

        self._emulate(play, range(self.num_envs))
        final_obs = self._images()
        self._steps = self._steps + 1
        limit = self._steps >= self.max_episode_steps
        terminated = torch.from_numpy(over | lost if self.life_loss else over)
        ended = (
            torch.from_numpy(over) | limit
        )  # the game, unlike the learner's episode, outlasts a life
        obs = final_obs
        if ended.any():
            obs = self._start(ended)
        reward = torch.from_numpy(rewards.clip(-1, 1) if self.clip_rewards else rewards)
        obs, reward, terminated, truncated, final_obs = (
            x.to(self.device) for x in (obs, reward, terminated, limit & ~terminated, final_obs)
        )
        info = {"final_obs": final_obs, "_final_obs": terminated | truncated}
        return obs, reward, terminated, truncated, info

    def keep(self, index: Tensor) -> None:
        """Go on with the copies `index` (int64 [B']) only, in that order."""
        index = index.cpu()
        self._games = [self._games[i] for i in index.tolist()]
        for name in ("_key", "_counter", "_steps", "_pressed"):
            setattr(self, name, getattr(self, name)[index])
        self._resize()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that decides the copies' future: tensors [B, …]; the emulators' states are bytes, filled with 0."""
        games = [
            torch.frombuffer(bytearray(game.serialize()), dtype=torch.uint8) for game in self._games
        ]
        state = {"games": torch.nn.utils.rnn.pad_sequence(games, batch_first=True)}
        return state | {
            name: getattr(self, name) for name in ("_key", "_counter", "_steps", "_pressed")
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict()` was taken."""
        from ale_py import ALEState

        self._games = [ALEState(game.tobytes()) for game in state["games"].cpu().numpy()]
        for name in ("_key", "_counter", "_steps", "_pressed"):
            setattr(self, name, state[name].cpu().clone())

    def _start(self, where: Tensor) -> Tensor:
        """Begin a game in the copies `where` (bool [B]): the images of all [B, C, size, size]."""
        noops = (uniform(self._key, self._counter, 1).squeeze(1) * self.noops).long().tolist()
        self._counter = self._counter + where
        self._steps, self._pressed = self._steps * ~where, self._pressed * ~where

        def begin(ale: Any, copy: int) -> None:
            for _ in range(
                2
            ):  # what is left on the data bus is no part of a state: let it be what a first frame leaves there
                ale.restoreState(self._begin)
                ale.act(NOOP)
            for _ in range(noops[copy]):
                ale.act(NOOP)
            ale.act(self._fire)
            self._look(ale, copy)

        self._emulate(begin, torch.nonzero(where).squeeze(1).tolist())
        return self._images()

    def _stick(self, actions: Tensor) -> Tensor:
        """What is pressed in each frame of a decision [B, SKIP]: the frame before's, by chance (Machado et al. 2018), or `actions` [B]."""
        if not self.stickiness:
            return actions.unsqueeze(1).expand(-1, SKIP)
        sticks = uniform(self._key, self._counter, SKIP) < self.stickiness
        self._counter = self._counter + SKIP
        frames = [self._pressed]
        for stick in sticks.unbind(1):
            frames.append(torch.where(stick, frames[-1], actions))
        self._pressed = frames[-1]
        return torch.stack(frames[1:], 1)

    def _look(self, ale: Any, copy: int, good: bool = True) -> None:
        """The present screen, black unless `good`, as both of the copy's."""
        self._picture(ale, self._screens[copy, 0])
        self._screens[copy] = self._screens[copy, 0] * good

    def _picture(self, ale: Any, into: np.ndarray) -> None:
        """The present screen, [H, W, C]."""
        if self.channels == 1:
            ale.getScreenGrayscale(into[..., 0])
        else:
            ale.getScreenRGB(into)

    def _emulate(self, work: Callable[[Any, int], None], copies: Sequence[int]) -> None:
        """`work(emulator, copy)` for each of `copies`, in an emulator that has taken up the copy's state."""

        def share(ale: Any, mine: Sequence[int]) -> None:
            for copy in mine:
                ale.restoreState(self._games[copy])
                work(ale, copy)
                self._games[copy] = ale.cloneState()

        threads = len(self._emulators)
        list(self._pool.map(share, self._emulators, [copies[i::threads] for i in range(threads)]))

    def _images(self) -> Tensor:
        """The brighter pixels of each copy's two screens, averaged by area: uint8 [B, C, size, size].

        Sums of whole numbers below 2²⁴ are exact in float32, so no pixel depends on the batch, the threads or the BLAS.
        """
        np.maximum(self._screens[:, 0], self._screens[:, 1], out=self._bright)
        bright = torch.from_numpy(self._bright).movedim(3, 1).flatten(0, 1)  # [B · C, H, W]
        x = (self._rows.T @ bright.unflatten(1, (-1, len(self._rows)))).flatten(1, 2)
        x = (x.unflatten(2, (-1, len(self._columns))) @ self._columns).flatten(2)
        x = (x / (len(self._rows) * len(self._columns))).round().to(torch.uint8)
        return x.unflatten(0, (-1, self.channels))

    def _resize(self) -> None:
        resize(self, len(self._games))
        # Made once: the system takes longer to give such arrays than to fill them.
        self._screens = np.zeros((self.num_envs, 2, *self._pixels, self.channels), np.uint8)
        self._bright = np.zeros((self.num_envs, *self._pixels, self.channels), np.float32)


def _overlaps(pixels: int, size: int) -> Tensor:
    """How far pixel i of `pixels` reaches into pixel j of `size` on the same length, for one period: whole numbers [i, j]."""
    period = math.gcd(pixels, size)
    pixels, size = pixels // period, size // period
    i, j = torch.arange(pixels).unsqueeze(1), torch.arange(size)
    return (
        (torch.minimum((i + 1) * size, (j + 1) * pixels) - torch.maximum(i * size, j * pixels))
        .clamp(min=0)
        .float()
    )


@cache
def _emulator(game: str, thread: int) -> tuple[Any, Any]:
    """(the one that all envs of the process share in this thread, the state of a game's beginning).

    ConfigError without ale-py, and where it does not have the game.
    """
    try:
        from ale_py import ALEInterface, LoggerMode, roms
    except ImportError:
        raise ConfigError(
            f'env.game={game}: Atari needs ale-py; install it with: pip install "rlx[atari]"'
        ) from None
    games = roms.get_all_rom_ids()
    if game not in games:
        raise ConfigError(f"env.game={game}: no such game.{nearest(game, games)}")
    ALEInterface.setLoggerMode(LoggerMode.Error)
    ale, rom = ALEInterface(), cast(Path, roms.get_rom_path(game))
    if not ALEInterface.isSupportedROM(rom):  # loadROM would end the process
        raise ConfigError(f"env.game={game}: not a game for one player.")
    if (
        game == "tic_tac_toe_3d"
    ):  # it reads the bus in play, see AtariEnv._start: the one of 104 that does
        raise ConfigError(
            f"env.game={game}: the emulator cannot save and restore this game exactly."
        )
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setInt("random_seed", 1)
    ale.loadROM(rom)
    ale.reset_game()  # once: in some games a later one depends on the game before
    begin = ale.cloneState()
    for _ in range(2):  # two games show other pictures until a state was restored
        ale.restoreState(begin)
        ale.act(NOOP)
    return ale, begin
