"""Atari 2600 games of the Arcade Learning Environment (Bellemare et al. 2013), as DQN sees them.

Frames and rewards are those of Mnih et al. 2015. All chance is drawn here, none in the emulator.

A copy is an emulator's whole state, of 8 kB. There is one emulator for each thread, which restores
the state of one copy after the other: to load an emulator takes longer than 200 decisions. The
first screen after a state was restored may show parts of the screen before, so it is never used.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from rlx.agent import Rules
from rlx.config import Count, Share
from rlx.env import resize, spread_fresh
from rlx.errors import ConfigError
from rlx.names import nearest
from rlx.nn.rng import stream_key, uniform

if TYPE_CHECKING:
    from ale_py import Action, ALEInterface, ALEState

NOOP = 0
"""The action of pressing nothing."""
SKIP = 4
"""Frames of one decision. The last two are seen, the brighter pixel of each pair."""
_STATE = ("_key", "_counter", "_steps", "_pressed")
"""Attributes, int64 [B], that are saved beside the emulators' states."""


class AtariEnv(VectorEnv):
    """`num_envs` copies of an Atari game: a `TensorEnv`.

    Observations are images uint8 [B, C, size, size], gray (C = 1) or of red, green and blue
    (C = 3). With `life_loss`, a lost life is `terminated`, but the game goes on. The time limit
    and all counters are in decisions.
    """

    metadata = {
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": [],
        "render_fps": 15,  # 60 frames a second, four of them a decision
    }
    reward_threshold: float | None = None
    rules: Rules | None = None
    grid: tuple[int, int] | None = None
    observation_units: tuple[str, ...] | None = None
    angles: tuple[tuple[int, int], ...] = ()
    lowest_reward: float | None = None
    truncation_is_harm: bool = False
    _key: Tensor
    """The copies' random streams."""
    _counter: Tensor
    """How many random numbers each copy has used."""
    _steps: Tensor
    """Decisions since the game began."""
    _pressed: Tensor
    """The action that was pressed in the last frame."""

    def __init__(
        self,
        game: str,
        num_envs: int,
        *,
        max_episode_steps: Count,
        size: Count,
        gray: bool,
        noops: Count,
        fire: bool,
        life_loss: bool,
        clip_rewards: bool,
        repeat_action_probability: Share,
        threads: Count,
        device: torch.device | str = "cpu",
    ):
        """The keys of conf/env/atari.yaml."""
        self.max_episode_steps = max_episode_steps
        self.noops = noops
        self.life_loss = life_loss
        self.clip_rewards = clip_rewards
        self.stickiness = repeat_action_probability
        self.channels = 1 if gray else 3
        self.device = torch.device(device)
        emulators = [_emulator(game, thread) for thread in range(threads)]
        self._emulators = [ale for ale, _ in emulators]
        _, self._first_state = emulators[0]
        self._pool = ThreadPoolExecutor(threads)
        self._actions = self._emulators[0].getMinimalActionSet()
        self._fire: Action | int = NOOP
        if fire:
            self._fire = next((key for key in self._actions if key.name == "FIRE"), NOOP)
        self._pixels = self._emulators[0].getScreenDims()
        rows, columns = self._pixels
        self._rows = _overlaps(rows, size)
        self._columns = _overlaps(columns, size)
        shape = (self.channels, size, size)
        self.single_observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.single_action_space = gymnasium.spaces.Discrete(len(self._actions))
        self._games = [self._first_state] * num_envs
        for name in _STATE:
            setattr(self, name, torch.zeros(num_envs, dtype=torch.int64))
        self._resize()

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict]:
        """First observations [B, C, size, size] and an empty info.

        `seed`: one integer (copy i gets seed + i) or one per copy; None draws fresh ones.
        `options["reset_mask"]`: bool [B], the copies that begin anew; the others stay.
        """
        mask = (options or {}).get("reset_mask")
        if mask is None:
            mask = np.ones(self.num_envs, bool)
        where = torch.as_tensor(mask)
        key = stream_key(torch.tensor(spread_fresh(seed, self.num_envs)), "env")
        self._key = torch.where(where, key, self._key)
        self._counter = self._counter * ~where
        return self._start(where).to(self.device), {}

    def step(
        self, actions: Tensor | np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """(obs, reward, terminated, truncated, info) of `actions` [B], as `TensorEnv.step`."""
        pressed = self._apply_stickiness(torch.as_tensor(actions).cpu()).tolist()
        rewards = np.zeros(self.num_envs, np.float32)
        game_over = np.zeros(self.num_envs, bool)
        lost_life = np.zeros(self.num_envs, bool)

        def play(ale: "ALEInterface", copy: int) -> None:
            result = self._play(ale, copy, pressed[copy])
            rewards[copy], game_over[copy], lost_life[copy] = result

        self._emulate(play, range(self.num_envs))
        final_obs = self._images()
        self._steps = self._steps + 1
        limit = self._steps >= self.max_episode_steps
        # The game, unlike the learner's episode, outlasts a life.
        game_ended = torch.from_numpy(game_over) | limit
        obs = self._start(game_ended) if game_ended.any() else final_obs
        ended = game_over | lost_life if self.life_loss else game_over
        terminated = torch.from_numpy(ended).to(self.device)
        reward = torch.from_numpy(rewards.clip(-1, 1) if self.clip_rewards else rewards)
        truncated = limit.to(self.device) & ~terminated
        info = {"final_obs": final_obs.to(self.device), "_final_obs": terminated | truncated}
        return obs.to(self.device), reward.to(self.device), terminated, truncated, info

    def keep(self, index: Tensor) -> None:
        """Go on with the copies `index` (int64 [B']) only, in that order."""
        index = index.cpu()
        self._games = [self._games[i] for i in index.tolist()]
        for name in _STATE:
            setattr(self, name, getattr(self, name)[index])
        self._resize()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that decides the copies' future: tensors [B, …].

        "games": uint8 [B, N], the emulators' states as bytes, filled up with 0.
        """
        games = [bytearray(game.serialize()) for game in self._games]
        parts = [torch.frombuffer(game, dtype=torch.uint8) for game in games]
        state = {"games": torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)}
        return state | {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from where `state_dict()` was taken."""
        from ale_py import ALEState

        self._games = [ALEState(game.tobytes()) for game in state["games"].cpu().numpy()]
        for name in _STATE:
            setattr(self, name, state[name].cpu().clone())

    def _start(self, where: Tensor) -> Tensor:
        """Begin a game in the copies `where` (bool [B]): the images of all [B, C, size, size]."""
        noops = (uniform(self._key, self._counter, 1).squeeze(1) * self.noops).long().tolist()
        self._counter = self._counter + where
        self._steps = self._steps * ~where
        self._pressed = self._pressed * ~where

        def begin(ale: "ALEInterface", copy: int) -> None:
            _start_from(ale, self._first_state)
            for _ in range(noops[copy]):
                ale.act(NOOP)
            ale.act(self._fire)
            self._copy_to_both_screens(ale, copy)

        self._emulate(begin, torch.nonzero(where).squeeze(1).tolist())
        return self._images()

    def _apply_stickiness(self, actions: Tensor) -> Tensor:
        """The action that is pressed in each frame of a decision, int64 [B, SKIP].

        It is that of the decision's `actions` [B] or, by chance, the one that was pressed in the
        frame before (sticky actions, Machado et al. 2018).
        """
        if not self.stickiness:
            return actions.unsqueeze(1).expand(-1, SKIP)
        sticks = uniform(self._key, self._counter, SKIP) < self.stickiness
        self._counter = self._counter + SKIP
        frames = []
        for stick in sticks.unbind(1):
            self._pressed = torch.where(stick, self._pressed, actions)
            frames.append(self._pressed)
        return torch.stack(frames, 1)

    def _play(
        self, ale: "ALEInterface", copy: int, actions: Sequence[int]
    ) -> tuple[float, bool, bool]:
        """(reward, whether the game is over, whether a life is lost) after one decision of a copy.

        `actions`: the action that is pressed in each of the decision's frames.
        """
        lives = ale.lives()
        reward = 0
        for frame, action in enumerate(actions):
            reward += ale.act(self._actions[action])
            if frame >= SKIP - 2:
                self._copy_screen(ale, self._screens[copy, frame % 2])
            if ale.game_over(with_truncation=False):
                self._copy_to_both_screens(ale, copy)
                if frame == 0:
                    # The first screen after a state was restored, which is never used.
                    self._screens[copy] = 0
                return reward, True, False
        lost_life = ale.lives() < lives
        if lost_life and self._fire:
            reward += ale.act(self._fire)
        return reward, False, lost_life

    def _copy_to_both_screens(self, ale: "ALEInterface", copy: int) -> None:
        """Write the emulator's screen into both screens of a copy."""
        self._copy_screen(ale, self._screens[copy, 0])
        self._screens[copy, 1] = self._screens[copy, 0]

    def _copy_screen(self, ale: "ALEInterface", screen: np.ndarray) -> None:
        """Write the emulator's screen into `screen`, uint8 [H, W, C]."""
        if self.channels == 1:
            ale.getScreenGrayscale(screen[..., 0])
        else:
            ale.getScreenRGB(screen)

    def _emulate(self, work: Callable[["ALEInterface", int], None], copies: Sequence[int]) -> None:
        """Call `work(emulator, copy)` for all `copies`, with an emulator in the copy's state."""

        def work_on(ale: "ALEInterface", thread_copies: Sequence[int]) -> None:
            for copy in thread_copies:
                ale.restoreState(self._games[copy])
                work(ale, copy)
                self._games[copy] = ale.cloneState()

        threads = len(self._emulators)
        shares = [copies[thread::threads] for thread in range(threads)]
        # As a list: so it waits for all, and what one raised is raised here.
        list(self._pool.map(work_on, self._emulators, shares))

    def _images(self) -> Tensor:
        """uint8 [B, C, size, size]: the brighter pixels of a copy's two screens, averaged by area.

        Sums of whole numbers below 2²⁴ are exact in float32, so no pixel depends on the batch, the
        threads or the BLAS.
        """
        np.maximum(self._screens[:, 0], self._screens[:, 1], out=self._bright)
        bright = torch.from_numpy(self._bright).movedim(3, 1).flatten(0, 1)  # [B · C, H, W]
        # Period by period of `_overlaps`, first along the rows and then along the columns.
        row_periods = bright.unflatten(1, (-1, len(self._rows)))
        short = (self._rows.T @ row_periods).flatten(1, 2)  # [B · C, size, W]
        column_periods = short.unflatten(2, (-1, len(self._columns)))
        sums = (column_periods @ self._columns).flatten(2)  # [B · C, size, size]
        means = sums / (len(self._rows) * len(self._columns))
        return means.round().to(torch.uint8).unflatten(0, (-1, self.channels))

    def _resize(self) -> None:
        """Make the arrays anew, for as many copies as there are games."""
        resize(self, len(self._games))
        # Made once: the system takes longer to give such arrays than to fill them.
        self._screens = np.zeros((self.num_envs, 2, *self._pixels, self.channels), np.uint8)
        self._bright = np.zeros((self.num_envs, *self._pixels, self.channels), np.float32)


def _overlaps(pixels: int, size: int) -> Tensor:
    """How much of pixel i of `pixels` falls into pixel j of `size` on the same length.

    float32 [i, j], whole numbers, of one period: the pattern repeats itself along the length.
    """
    period = math.gcd(pixels, size)
    pixels, size = pixels // period, size // period
    i = torch.arange(pixels).unsqueeze(1)
    j = torch.arange(size)
    begin = torch.maximum(i * size, j * pixels)
    end = torch.minimum((i + 1) * size, (j + 1) * pixels)
    return (end - begin).clamp(min=0).float()


def _start_from(ale: "ALEInterface", state: "ALEState") -> None:
    """Restore `state` and play one frame.

    The value left on the data bus is no part of a state, and two games show other screens until a
    state was restored. So the frame is played twice: the second time the bus holds the value that
    the first time has left there.
    """
    for _ in range(2):
        ale.restoreState(state)
        ale.act(NOOP)


@cache
def _emulator(game: str, thread: int) -> tuple["ALEInterface", "ALEState"]:
    """(the emulator of a thread, which all envs of the process share, the game's first state).

    ConfigError without ale-py, and where it does not have the game.
    """
    # `thread` is an argument so that the cache holds one emulator for each thread.
    try:
        from ale_py import ALEInterface, LoggerMode, roms
    except ImportError:
        install = 'install it with: pip install "rlx[atari]"'
        raise ConfigError(f"env.game={game}: Atari needs ale-py; {install}") from None
    games = roms.get_all_rom_ids()
    if game not in games:
        raise ConfigError(f"env.game={game}: no such game.{nearest(game, games)}")
    ALEInterface.setLoggerMode(LoggerMode.Error)
    ale = ALEInterface()
    rom = cast(Path, roms.get_rom_path(game))
    # Of other games, loadROM would end the process.
    if not ALEInterface.isSupportedROM(rom):
        raise ConfigError(f"env.game={game}: not a game for one player.")
    # Of 104 games it is the only one that reads the data bus in play (see `_start_from`).
    if game == "tic_tac_toe_3d":
        problem = "the emulator cannot save and restore this game exactly"
        raise ConfigError(f"env.game={game}: {problem}.")
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setInt("random_seed", 1)
    ale.loadROM(rom)
    # Once only: in some games a later reset depends on the game before.
    ale.reset_game()
    first_state = ale.cloneState()
    _start_from(ale, first_state)
    return ale, first_state
