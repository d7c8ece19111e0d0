"""Episodes to look at: each step an image, what was decided and where an attack flipped it."""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlx.agent import Choose, Policy, Scores
from rlx.config import load_class
from rlx.env import TensorEnv
from rlx.envs.batched import BatchedEnv
from rlx.envs.gym import GymEnv
from rlx.envs.view import View
from rlx.errors import ConfigError
from rlx.grids import parse_seeds
from rlx.nn.encoders import is_image
from rlx.nn.seed_axis import take
from rlx.rollout import rollout
from rlx.show import console

if TYPE_CHECKING:
    from PIL import Image
    from PIL.ImageFont import FreeTypeFont

WIDTH = 360
"""The least pixels from left to right of an episode, for what is written."""
SHARPEST = 640
"""Pixels from left to right above which an image is made smaller."""
MOST_WIDTH = 1920
"""The most pixels from left to right of all episodes beside each other."""
MOST_FILMS = 36
"""The most episodes in a video."""
MOST_NUMBERS = 12
"""The most components of an observation that are written one by one."""
COLUMN = 84
"""Pixels of a column of numbers."""
FONT_SIZE = 14
LINE = 19
"""Pixels from a line of text to the next."""
BORDER = 5
"""Pixels of the frame around an image, which is red where a decision was flipped."""
WHITE = (255, 255, 255)
INK = (30, 30, 30)
FAINT = (140, 140, 140)
FLIPPED = (213, 30, 30)
GIF_FPS = 50
"""The most images in a second of a GIF: viewers show faster ones slowly."""
COLOURS = 64
"""Colours of a GIF."""


class Decision(NamedTuple):
    """What one head has decided at one step."""

    obs: np.ndarray
    """The observation, [*O]."""
    shown: np.ndarray
    """What the head was shown in its place, [*O]; the same where nobody attacks."""
    choice: np.ndarray
    """What was decided: a number, or an action [D] of a Box."""
    clean: np.ndarray
    """What it would have decided at `obs`."""
    flipped: bool
    """Whether the attack has changed the decision."""


@dataclass
class Film:
    """An episode of T steps that was watched: T + 1 images, and what was decided between them."""

    title: str
    """What is written above it."""
    images: list[bytes] = field(default_factory=list)
    """The first is of the first state, the last of where the last step has led; compressed, since
    500 of CartPole would take 110 MB."""
    shape: tuple[int, ...] = ()
    """(H, W, 3), that of each image."""
    rewards: list[float] = field(default_factory=list)
    """The reward of each step, [T]."""
    decisions: list[dict[str, Decision]] = field(default_factory=list)
    """What each head has decided at each step; heads whose earlier choice stands are missing."""

    def add(self, image: np.ndarray) -> None:
        """Add an image uint8 [H, W, 3]."""
        self.shape = image.shape
        self.images.append(zlib.compress(image.tobytes(), 1))

    def image(self, step: int) -> np.ndarray:
        """The image uint8 [H, W, 3] before a step."""
        pixels = np.frombuffer(zlib.decompress(self.images[step]), np.uint8)
        return pixels.reshape(self.shape)

    def note(
        self,
        head: str,
        obs: Tensor,
        shown: Tensor,
        choice: Tensor,
        clean: Tensor,
        flipped: Tensor,
        deciding: Tensor,
    ) -> None:
        """Note a decision; all tensors are of one copy, [1, 1, …]."""
        if bool(deciding):
            self.decisions[-1][head] = Decision(
                _array(obs), _array(shown), _array(choice), _array(clean), bool(flipped)
            )

    def greedy(self, head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        """The way to choose of an episode that nobody attacks."""
        choice = scores.best(obs)
        self.note(head, obs, obs, choice, choice, torch.zeros_like(deciding), deciding)
        return choice

    def flips(self) -> list[int]:
        """The steps at which a decision was flipped."""
        return [
            step
            for step, decisions in enumerate(self.decisions)
            if any(decision.flipped for decision in decisions.values())
        ]


def _array(value: Tensor) -> np.ndarray:
    """The value of the only copy of a tensor [1, 1, …]."""
    return value[0, 0].detach().cpu().numpy()


class Camera:
    """An env of one copy, of which every state is an image: it can be played, as a `TensorEnv`."""

    film: "Film"
    """What the next episode is filmed into."""

    def __init__(self, env: TensorEnv):
        """ConfigError where the env draws no images."""
        self.env = env
        self.ended = False
        """Whether the episode is over: what is played on is not filmed."""
        inner: Any = env.env if isinstance(env, View) else env
        self._image = _images_of(inner)
        self.fps = _fps(inner)
        """Steps in a second."""
        obs, _ = env.reset(seed=0)
        self._image({"final_obs": obs})

    def greedy(self, policy: Policy, scene: "Scene", reset_seed: int, title: str) -> Film:
        """A film of a scene that nobody attacks, which begins from `reset_seed`."""
        device = next(policy.parameters()).device
        film = Film(f"{title}, seed {scene.seed}, episode {scene.episode}")
        one = take(policy, torch.tensor([scene.row], device=device))
        self.play(film, one, reset_seed, film.greedy)
        return film

    def play(self, film: Film, policy: Policy, reset_seed: int, choose: Choose) -> None:
        """Play the episode of `reset_seed` with a policy of one seed, into a new `film`."""
        device = next(policy.parameters()).device
        reset_seeds = torch.tensor([[reset_seed]], device=device)
        rollout(policy, self.filming(film), reset_seeds, lambda ids: choose)

    def filming(self, film: Film) -> TensorEnv:
        """The env, whose next episode will be filmed into a new `film`."""
        self.film = film
        return cast(TensorEnv, self)

    def reset(self, *, seed: int | Sequence[int] | None = None) -> tuple[Tensor, dict]:
        """As the env's; the film begins."""
        obs, info = self.env.reset(seed=seed)
        self.ended = False
        self.film.add(self._image({"final_obs": obs}))
        self.film.decisions.append({})
        return obs, info

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """As the env's; the film goes on, until the episode has ended."""
        obs, reward, terminated, truncated, info = self.env.step(actions)
        if not self.ended:
            self.film.add(self._image(info))
            self.film.rewards.append(float(reward))
            self.ended = bool(terminated | truncated)
        if not self.ended:
            self.film.decisions.append({})
        return obs, reward, terminated, truncated, info


class _Seen(gymnasium.Wrapper):
    """An env of Gymnasium that keeps the image of where each step has led, before any reset."""

    def reset(self, **options: Any) -> Any:
        """As the env's, and keep the image."""
        result = self.env.reset(**options)
        self.image: Any = self.env.render()
        return result

    def step(self, action: Any) -> Any:
        """As the env's, and keep the image."""
        result = self.env.step(action)
        self.image = self.env.render()
        return result


def drawing(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config group `env`, changed so that Gymnasium's envs draw images."""
    if "kwargs" not in node or not issubclass(load_class(node, "env", object), GymEnv):
        return node
    return {**node, "kwargs": {**(node["kwargs"] or {}), "render_mode": "rgb_array"}}


def _images_of(env: Any) -> Any:
    """A function of a step's info: the image uint8 [H, W, 3] of where it led, before a reset."""
    if isinstance(env, BatchedEnv):
        env.render_mode = "rgb_array"
        return lambda info: env.render(env.final_state)[0]
    if isinstance(env, GymEnv) and env.render_mode == "rgb_array":
        seen = _Seen(env.envs[0])
        env.envs[0] = seen
        return lambda info: np.asarray(seen.image)
    space = env.single_observation_space
    if isinstance(space, gymnasium.spaces.Box) and is_image(space.shape):
        return lambda info: _picture(info["final_obs"][0].cpu().numpy())
    raise ConfigError(f"video: {type(env).__name__} draws no images.")


def _fps(env: Any) -> float:
    """Steps in a second of an env's own time, as far as it tells."""
    one: Any = env.envs[0] if isinstance(env, GymEnv) else env
    images = one.metadata.get("render_fps")
    if images is None:
        images = 1 / getattr(one.unwrapped, "dt", 1 / 30)
    return float(images) / getattr(one.unwrapped, "repeat", 1)


def _picture(obs: np.ndarray) -> np.ndarray:
    """The newest channel of an image [C, H, W], or its three colours, as uint8 [H, W, 3]."""
    channels = 3 if len(obs) == 3 else 1
    image = obs[-channels:]
    if image.dtype != np.uint8:
        low = min(0.0, float(image.min()))  # -1 to 1 of a difference of two images
        image = (255 * (image - low) / (1 - low)).clip(0, 255).astype(np.uint8)
    return np.repeat(image, 3 // channels, axis=0).transpose(1, 2, 0)


class Scene(NamedTuple):
    """An episode that is wanted."""

    row: int
    """The row of the policy's seed axis."""
    seed: int
    """The seed of that row."""
    episode: int
    """The number of the reported episode, from 0."""


def scenes(config: Any, seeds: Sequence[int]) -> list[Scene]:
    """The scenes that a command's keys name, none without `video`; ConfigError where none can be.

    `config`: with the keys `video`, `video_seeds`, `video_episodes` and `episodes`; `seeds`: those
    that are played.
    """
    if not config.video:
        for key, default in (("video_seeds", None), ("video_episodes", 1), ("video_eps", None)):
            value = getattr(config, key, default)
            if value != default:
                raise ConfigError(f"{key}={value}: is of a video; add video=true.")
        return []
    chosen = list(seeds[:1])
    if config.video_seeds is not None:
        chosen = parse_seeds(config.video_seeds, "video_seeds")
    numbers = parse_seeds(config.video_episodes, "video_episodes")
    for seed in chosen:
        if seed not in seeds:
            played = console.ranges(seeds)
            raise ConfigError(
                f"video_seeds={config.video_seeds}: {seed} is not played; of {played}."
            )
    if max(numbers) >= config.episodes:
        raise ConfigError(
            f"video_episodes={config.video_episodes}: {max(numbers)} is not played; "
            f"of 0 to {config.episodes - 1} (episodes={config.episodes})."
        )
    if len(chosen) * len(numbers) > MOST_FILMS:
        count = f"{len(chosen)} seeds × {len(numbers)} episodes"
        raise ConfigError(f"video_seeds, video_episodes: {count}; at most {MOST_FILMS} in a video.")
    return [Scene(seeds.index(seed), seed, number) for seed in chosen for number in numbers]


def save(camera: Camera, films: Sequence[Film], path: Path, group: int = 1) -> Path:
    """Write films as a grid: video.mp4 in the folder `path`, or video.gif without PyAV.

    `group`: how many of them belong side by side. Returns the file's path.
    """
    columns = group * math.ceil(math.sqrt(len(films) / group))
    frames = _Frames(films, columns, camera.env.observation_units)
    try:
        import av
    except ImportError:
        file = path / "video.gif"
        _save_gif(frames, camera.fps, file)
        return file
    file = path / "video.mp4"
    with av.open(str(file), "w", options={"movflags": "faststart"}) as container:
        rate = Fraction(camera.fps).limit_denominator(1000)
        stream: Any = container.add_stream("libx264", rate=rate, options={"crf": "23"})
        stream.width, stream.height = frames.size
        stream.pix_fmt = "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return file


def _save_gif(frames: "_Frames", fps: float, path: Path) -> None:
    """Write frames as a GIF, which counts time in hundredths of a second."""
    from PIL import Image

    each = math.ceil(fps / GIF_FPS)
    count = -(-len(frames) // each)
    palette = frames.palette()
    images = (
        image.quantize(palette=palette, dither=Image.Dither.NONE)
        for number, image in enumerate(frames)
        if number % each == 0
    )
    ends = [round(100 * each * (number + 1) / fps) for number in range(count)]
    milliseconds = [10 * int(end) for end in np.diff([0, *ends])]
    next(images).save(
        path, save_all=True, append_images=images, duration=milliseconds, loop=0, optimize=True
    )


class _Frames:
    """The images of a video: a grid of films; those that have ended stay as they are."""

    def __init__(self, films: Sequence[Film], columns: int, names: Sequence[str] | None):
        self.columns = columns
        self.cells = [_Cell(film, names, MOST_WIDTH // columns) for film in films]
        self.width = max(cell.width for cell in self.cells)
        self.height = max(cell.height for cell in self.cells)
        width = columns * self.width
        rows = -(-len(films) // self.columns)
        # H.264 halves the resolution of colours.
        self.size = (width + width % 2, rows * self.height + rows * self.height % 2)

    def __len__(self) -> int:
        return max(len(cell.film.images) for cell in self.cells)

    def __iter__(self) -> "Iterator[Image.Image]":
        return (self.frame(number) for number in range(len(self)))

    def frame(self, number: int) -> "Image.Image":
        """Image `number` of the video."""
        from PIL import Image

        image = Image.new("RGB", self.size, WHITE)
        for place, cell in enumerate(self.cells):
            row, column = divmod(place, self.columns)
            image.paste(cell.frame(number), (column * self.width, row * self.height))
        return image

    def palette(self) -> "Image.Image":
        """The colours of a GIF, those of some of the frames."""
        from PIL import Image

        some = sorted({*np.linspace(0, len(self) - 1, 5).astype(int).tolist(), *self._marked()})
        strip = Image.new("RGB", (self.size[0], self.size[1] * len(some)), WHITE)
        for place, number in enumerate(some):
            strip.paste(self.frame(number), (0, place * self.size[1]))
        return strip.quantize(COLOURS)

    def _marked(self) -> list[int]:
        """A frame with a flipped decision, if there is one."""
        return [step for cell in self.cells for step in cell.film.flips()][:1]


class _Cell:
    """One film within the frames: what is written above it, its image, what its heads see."""

    def __init__(self, film: Film, names: Sequence[str] | None, most_width: int):
        """`names`: those of the observation's components; `most_width`: the most pixels."""
        self.film = film
        height, width, _ = film.shape
        scale: float = max(1, round(WIDTH / width)) if width < WIDTH else 1
        if width > SHARPEST:
            scale = SHARPEST / width
        scale = min(scale, (most_width - 2 * BORDER) / width)
        self.image_size = (round(scale * width), round(scale * height))
        self.width = max(min(WIDTH, most_width), self.image_size[0] + 2 * BORDER)
        self.flips = film.flips()
        self.returns = [0.0, *np.cumsum(film.rewards).tolist()]
        self.heads = list(dict.fromkeys(head for step in film.decisions for head in step))
        self.attacked = [head for head in self.heads if self._is_attacked(head)]
        self.names = self._names(names)
        self.panel = self._panel_height()
        self.top = LINE * (2 + len(self.heads))
        self.bottom = self.top + self.image_size[1] + 2 * BORDER
        self.height = self.bottom + LINE + self.panel

    def _is_attacked(self, head: str) -> bool:
        """Whether a head was ever shown anything but its observation."""
        decisions = [step[head] for step in self.film.decisions if head in step]
        return any((decision.obs != decision.shown).any() for decision in decisions)

    def _panel_height(self) -> int:
        """Pixels that the observations take below the image."""
        if self.names:
            return LINE * (1 + len(self.names))
        if self.attacked and is_image(self._obs_shape()):
            return LINE + self.width // (1 + len(self.attacked))
        return 0

    def _obs_shape(self) -> tuple[int, ...]:
        """The shape of an observation of an attacked head."""
        return next(step[head].obs.shape for step in self.film.decisions for head in step)

    def _names(self, names: Sequence[str] | None) -> list[str]:
        """The names of the numbers that are written; none where there are too many."""
        if not self.attacked:
            return []
        shape = self._obs_shape()
        if len(shape) != 1 or shape[0] > MOST_NUMBERS:
            return []
        if names is None:
            return [f"component {number}" for number in range(shape[0])]
        return list(names)[-shape[0] :]  # of a stack only the newest is attacked

    def frame(self, number: int) -> "Image.Image":
        """Image `number` of the film, or its last."""
        from PIL import Image, ImageDraw

        step = min(number, len(self.film.rewards))
        frame = Image.new("RGB", (self.width, self.height), WHITE)
        draw = ImageDraw.Draw(frame)
        over = step == len(self.film.rewards)
        draw.text((BORDER, 2), self.film.title, INK, _font())
        ending = ", the end" if over else ""
        text = f"step {step}   return {self.returns[step]:.6g}{ending}"
        draw.text((BORDER, 2 + LINE), text, INK, _font())
        for place, head in enumerate(self.heads):
            text, colour = self._decision(head, step)
            draw.text((BORDER, 2 + LINE * (2 + place)), text, colour, _font())
        left = (self.width - self.image_size[0]) // 2
        image = Image.fromarray(self.film.image(step)).resize(self.image_size, Image.Resampling.BOX)
        edge = FLIPPED if step in self.flips else WHITE
        box = (left - BORDER, self.top, left + image.width + BORDER - 1, self.bottom - 1)
        draw.rectangle(box, fill=edge)
        frame.paste(image, (left, self.top + BORDER))
        self._draw_time(draw, step)
        if self.names:
            self._draw_numbers(draw, step)
        elif self.panel:
            self._draw_pictures(frame, draw, step)
        return frame

    def _decision(self, head: str, step: int) -> tuple[str, tuple[int, int, int]]:
        """What is written of a head's decision at a step, and its colour.

        What was decided before stands until the head decides again.
        """
        decision = self._newest(head, step)
        if decision is None or step == len(self.film.rewards):
            return head, FAINT
        text = f"{head} {_number(decision.choice)}"
        if head in self.film.decisions[step] and decision.flipped:
            return f"{text}, flipped from {_number(decision.clean)}", FLIPPED
        return text, INK

    def _newest(self, head: str, step: int) -> Decision | None:
        """The newest decision of a head until a step."""
        for decisions in reversed(self.film.decisions[: step + 1]):
            if head in decisions:
                return decisions[head]
        return None

    def _draw_time(self, draw: Any, step: int) -> None:
        """Draw how much of the episode has passed, and where decisions were flipped until now."""
        row = self.bottom + LINE // 2
        scale = (self.width - 2 * BORDER) / max(1, len(self.film.rewards))
        draw.line((BORDER, row, self.width - BORDER, row), (220, 220, 220), 3)
        draw.line((BORDER, row, BORDER + scale * step, row), FAINT, 3)
        for flip in self.flips:
            if flip <= step:
                column = BORDER + scale * flip
                draw.line((column, row - 5, column, row + 5), FLIPPED)

    def _draw_numbers(self, draw: Any, step: int) -> None:
        """Write the observation, and what each attacked head was shown in its place."""
        titles = ["observed", *(f"{head} sees" for head in self.attacked)]
        rights = [self.width - BORDER - COLUMN * place for place in reversed(range(len(titles)))]
        for right, title in zip(rights, titles, strict=True):
            draw.text((right, self.bottom + LINE), title, FAINT, _font(), anchor="ra")
        for number, name in enumerate(self.names):
            row = self.bottom + LINE * (2 + number)
            draw.text((BORDER, row), name, INK, _font())
            for right, head in zip(rights[1:], self.attacked, strict=True):
                decision = self._newest(head, step)
                if decision is None:
                    continue
                obs, shown = float(decision.obs[number]), float(decision.shown[number])
                colour = INK if obs == shown else FLIPPED
                draw.text((right, row), f"{shown:.3f}", colour, _font(), anchor="ra")
                if head == self.attacked[-1]:
                    draw.text((rights[0], row), f"{obs:.3f}", INK, _font(), anchor="ra")

    def _draw_pictures(self, frame: "Image.Image", draw: Any, step: int) -> None:
        """Draw the observed image, and what each attacked head was shown in its place."""
        from PIL import Image

        side = self.width // (1 + len(self.attacked)) - BORDER
        decisions = [(head, self._newest(head, step)) for head in self.attacked]
        pictures = []
        for head, decision in decisions:
            if decision is not None:
                pictures.append((f"{head} sees", decision.shown))
                observed = decision.obs
        if not pictures:
            return
        for place, (title, obs) in enumerate([("observed", observed), *pictures]):
            left = BORDER + place * (side + BORDER)
            draw.text((left, self.bottom + LINE), title, FAINT, _font())
            picture = Image.fromarray(_picture(obs))
            shape = (side, side * picture.height // picture.width)
            frame.paste(picture.resize(shape), (left, self.bottom + 2 * LINE))


def _number(choice: np.ndarray) -> str:
    """A choice as it is written: its number, or the numbers of an action of a Box."""
    if choice.ndim == 0:
        return str(int(choice))
    return " ".join(f"{value:+.2f}" for value in choice[:6])


@cache
def _font() -> "FreeTypeFont":
    """The font of what is written."""
    import matplotlib
    from PIL import ImageFont

    file = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    return ImageFont.truetype(str(file), FONT_SIZE)
