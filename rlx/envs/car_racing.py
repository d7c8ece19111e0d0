"""Gymnasium's CarRacing with its image drawn at its own size, which is much faster.

If wanted it is in gray, has 25 discrete actions, and plays several frames per step.
"""

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pygame
from gymnasium import spaces
from gymnasium.envs.box2d import car_dynamics, car_racing
from gymnasium.error import InvalidAction
from gymnasium.utils import EzPickle

from rlx.config import at_least

SIZE = 96
"""Rows and columns of an image."""
_FINE = 2
"""Points that are drawn for each pixel of an image, along each axis."""
_POINTS = SIZE * _FINE
"""Rows and columns of the canvas."""
_SCALE = np.array([_POINTS / car_racing.WINDOW_W, -_POINTS / car_racing.WINDOW_H])
"""From pixels of Gymnasium's window to points of the canvas, whose rows go down."""
_CAR_AT = np.array([0.5, 0.75]) * _POINTS
"""The point of the canvas where the car is."""
_DASHBOARD = 84
"""The first row of the dashboard in an image."""
_TEXT = 12
"""Rows and columns of the score in the dashboard's corner."""
_GRAY = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue (ITU-R BT.601)."""

_PEDALS = ((0, 0), (0.5, 0), (1, 0), (0, 0.5), (0, 1))
"""Gas and brake: roll, half and full gas, half and full brake."""
_STRAIGHT = [(0, *pedals) for pedals in _PEDALS]
_LEFT = [(-steer, *pedals) for pedals in _PEDALS for steer in (0.5, 1)]
_RIGHT = [(steer, *pedals) for pedals in _PEDALS for steer in (0.5, 1)]
ACTIONS = np.array([*_STRAIGHT, *_LEFT, *_RIGHT], np.float32)
"""float32 [25, 3]: steer, gas and brake of each discrete action."""


class CarRacing(car_racing.CarRacing):
    """Gymnasium's CarRacing, with the same tracks, physics and rewards to the bit.

    The images are the same too, but for where the edges of shapes fall among the pixels, and for 2
    of 255 by which pygame's scaling darkens Gymnasium's. Gymnasium draws 1000 x 800 points and
    shrinks them, which takes nearly all of its time.
    """

    def __init__(
        self,
        render_mode: str | None = None,
        lap_complete_percent: float = 0.95,
        domain_randomize: bool = False,
        continuous: bool = False,
        repeat: int = 1,
        gray: bool = True,
        dashboard: bool = True,
        patience: int | None = None,
    ):
        """The first three are Gymnasium's own, and so is `continuous`, but for the `ACTIONS`.

        `repeat`: frames per step. `gray`: observations are uint8 [1, 96, 96], else [3, 96, 96].
        `dashboard` false: the dashboard's rows are 0. `patience`: frames without a new tile after
        which the episode is truncated; None: never.
        """
        super().__init__(
            render_mode,
            lap_complete_percent=lap_complete_percent,
            domain_randomize=domain_randomize,
        )
        # Pickled and copied by these arguments, not by those that Gymnasium's class has noted.
        EzPickle.__init__(
            self,
            render_mode,
            lap_complete_percent,
            domain_randomize,
            continuous,
            repeat,
            gray,
            dashboard,
            patience,
        )
        at_least(repeat, 1, "env.kwargs.repeat")
        self.repeat = repeat
        self.gray = gray
        self.dashboard = dashboard
        self.patience = math.inf if patience is None else patience
        self.table = None if continuous else ACTIONS
        if self.table is not None:
            self.action_space = spaces.Discrete(len(self.table))
        self.observation_space = spaces.Box(0, 255, (1 if gray else 3, SIZE, SIZE), np.uint8)
        self._canvas = pygame.Surface((_POINTS, _POINTS), depth=8 if gray else 24)
        if gray:
            self._canvas.set_palette(_LEVELS)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """As Gymnasium's `step`, for `repeat` frames or until the episode ends."""
        if action is None:
            # The first frame, of which `reset` asks.
            self._idle = 0
            _, _, terminated, _, info = super().step(None)  # type: ignore[arg-type]
            self.state = self.image()
            return self.state, 0.0, terminated, False, info
        if self.table is not None and not self.action_space.contains(action):
            raise InvalidAction(f"action {action}: not in {self.action_space}.")
        controls = action if self.table is None else self.table[action]
        total = 0.0
        for _ in range(self.repeat):
            visited = self.tile_visited_count
            _, reward, terminated, _, info = super().step(controls)
            total += reward
            self._idle = 0 if self.tile_visited_count > visited else self._idle + 1
            truncated = not terminated and self._idle >= self.patience
            if terminated or truncated:
                break
        self.state = self.image()
        return self.state, total, terminated, truncated, info

    def render(self) -> Any:
        """As Gymnasium's `render`; "state_pixels": the observation as uint8 [96, 96, 3]."""
        if self.render_mode != "state_pixels" or self.car is None:
            return super().render()
        return np.repeat(self.state, 3 // len(self.state), 0).transpose(1, 2, 0)

    def image(self) -> np.ndarray:
        """The observation: uint8 [C, 96, 96]."""
        surface = self._draw()
        if self.gray:
            # The rounded mean of 2 x 2 points; pygame does not scale surfaces of 8 bits.
            points = pygame.surfarray.pixels2d(surface).T[..., None]
            rows = np.add(points[::2], points[1::2], dtype=np.uint16)
            sums = rows[:, ::2] + rows[:, 1::2]
            pixels = ((sums + 2) >> 2).astype(np.uint8)
        else:
            # The same mean, to 1 of 255.
            small = pygame.transform.smoothscale(surface, (SIZE, SIZE))
            pixels = pygame.surfarray.array3d(small).swapaxes(0, 1)
        if self.dashboard:
            pixels[-_TEXT:, :_TEXT] = _text(f"{self._score:04.0f}")[..., : pixels.shape[-1]]
        else:
            pixels[_DASHBOARD:] = 0
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _create_track(self) -> bool:
        if not super()._create_track():
            return False
        road, colours = zip(*self.road_poly, strict=True)
        # Squares and tiles [P, 4, 2] in metres, their centres [P, 2], and how far the corners lie
        # from the centre at most [P, 1].
        self._scenery = np.concatenate([_grass(), road])
        self._centres = self._scenery.mean(1)
        self._reach = np.abs(self._scenery - self._centres[:, None]).sum(-1).max(1, keepdims=True)
        scenery_colours = [self.grass_color] * len(_grass()) + list(colours)
        self._inks = [self._ink(colour) for colour in scenery_colours]
        self._ground = self._ink(self.bg_color)
        self._car_inks = [self._ink(colour) for colour in _CAR_COLOURS]
        self._bar_inks = [self._ink(colour) for colour in _BAR_COLOURS]
        return True

    def _ink(self, colour: Any) -> tuple[int, int, int]:
        """Red, green and blue (0…255) with which `colour` is drawn; alike where all is gray."""
        if self.gray:
            level = int(np.rint(_GRAY @ colour))
            return level, level, level
        red, green, blue = np.asarray(colour).astype(int)
        return int(red), int(green), int(blue)

    def _render(self, mode: str) -> Any:
        if mode != "state_pixels":
            return super()._render(mode)
        # Gymnasium shows the score without this frame's cost; `step` draws when it has ended.
        self._score = self.reward

    def _draw(self) -> pygame.Surface:
        """The canvas with all that is seen now."""
        surface = self._canvas
        surface.fill(0)
        camera = self._camera()
        visible = self._visible_scenery(camera)
        world = np.concatenate([_FIELD, self._scenery[visible], self._car_shapes()])
        bars = self._bars() * (_POINTS / 40)
        shapes = np.concatenate([camera.points(world), bars])
        scenery_inks = [self._inks[i] for i in visible.tolist()]
        inks = [self._ground, *scenery_inks, *self._car_inks, *self._bar_inks]
        self._fill(surface, shapes, inks)
        return surface

    def _camera(self) -> "_Camera":
        """The camera now: it follows the hull, and comes nearer in the first second."""
        assert self.car is not None
        hull = self.car.hull
        # As Gymnasium's: from metres to pixels of its window.
        zoom = car_racing.SCALE * (0.1 * max(1 - self.t, 0) + car_racing.ZOOM * min(self.t, 1))
        turn = _rotation(-np.array([hull.angle]))[0]
        return _Camera(np.array(hull.position), zoom, turn * (zoom * _SCALE))

    def _visible_scenery(self, camera: "_Camera") -> np.ndarray:
        """int64 [V]: the squares and tiles that reach into the canvas."""
        centres = camera.points(self._centres)
        reach = self._reach * camera.zoom * np.abs(_SCALE)
        inside = np.abs(centres - _POINTS / 2) < _POINTS / 2 + reach
        return inside.all(1).nonzero()[0]

    def _car_shapes(self) -> np.ndarray:
        """The shapes of the car, [P, 4, 2], in metres of the world."""
        assert self.car is not None
        bodies = [*self.car.wheels, self.car.hull]
        positions = np.array([body.position for body in bodies])
        angles = np.array([body.angle for body in bodies])
        shapes = _car([wheel.phase for wheel in self.car.wheels])
        return shapes @ _rotation(angles)[_CAR_BODY] + positions[_CAR_BODY, None]

    @staticmethod
    def _fill(surface: pygame.Surface, shapes: np.ndarray, inks: Sequence[Any]) -> None:
        """Draw `shapes` [P, 4, 2], in points of the canvas, each with its ink."""
        # pygame draws a shape's edge too, half a point too much on every side.
        outwards = np.sign(shapes - shapes.mean(1, keepdims=True))
        corners = np.rint(shapes - 0.5 - 0.5 * outwards).astype(int).tolist()
        empty = (np.ptp(shapes, axis=1) < 1e-2).any(1).tolist()
        for ink, polygon, is_empty in zip(inks, corners, empty, strict=True):
            if not is_empty:
                pygame.draw.polygon(surface, ink, polygon)

    def _bars(self) -> np.ndarray:
        """The dashboard and its bars, [8, 4, 2], in 40ths of the image."""
        assert self.car is not None
        wheels, hull = self.car.wheels, self.car.hull
        speed = 0.02 * math.hypot(*hull.linearVelocity)
        spins = [0.01 * wheel.omega for wheel in wheels]
        # Left, top, right and bottom of each bar.
        boxes = [(0, 35, 40, 40)]
        for left, height in zip((5, 7, 8, 9, 10), [speed, *spins], strict=True):
            boxes.append((left, 39 - height, left + 1, 39))
        boxes.append((20, 36, 20 - 10 * wheels[0].joint.angle, 38))
        boxes.append((30, 36, 30 - 0.8 * hull.angularVelocity, 38))
        return np.array(boxes)[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]


class _Camera(NamedTuple):
    """From metres of the world to points of the canvas.

    The world is moved, so that the hull lies at 0; turned, so that the hull looks upwards; and
    scaled, from metres to pixels of Gymnasium's window (the zoom) and from these to points of the
    canvas (`_SCALE`). Then the hull is put at its point of the canvas, `_CAR_AT`.
    """

    hull: np.ndarray
    """Where the hull is, [2], in metres."""
    zoom: float
    """Pixels of Gymnasium's window per metre."""
    matrix: np.ndarray
    """[2, 2]: the turn and both scales, for row vectors."""

    def points(self, world: np.ndarray) -> np.ndarray:
        """Where the places `world` [..., 2] are on the canvas, [..., 2]."""
        return (world - self.hull) @ self.matrix + _CAR_AT


_LEVELS = [(level, level, level) for level in range(256)]
"""The palette of the gray canvas."""
_FIELD = np.array([[(1, 1), (1, -1), (-1, -1), (-1, 1)]]) * car_racing.PLAYFIELD
"""The ground, [1, 4, 2]."""
_WHITE = (255, 255, 255)
_RED = (204, 0, 0)
_BLACK = (0, 0, 0)
_FRONT_WHEEL = (0, 0, 255)
_REAR_WHEEL = (51, 0, 255)
_BAR_COLOURS = [_BLACK, _WHITE, *[_FRONT_WHEEL] * 2, *[_REAR_WHEEL] * 2, (0, 255, 0), (255, 0, 0)]
"""Colours of the dashboard and of its bars: speed, four wheels, steering, turning."""
_HULL = car_dynamics.HULL_POLY3
_QUADS = [
    car_dynamics.HULL_POLY1,
    car_dynamics.HULL_POLY2,
    *([_HULL[i], _HULL[i + 1], _HULL[6 - i], _HULL[7 - i]] for i in range(3)),
    car_dynamics.HULL_POLY4,
]
_CAR_COLOURS = [car_dynamics.WHEEL_COLOR, car_dynamics.WHEEL_WHITE] * 4 + [_RED] * len(_QUADS)
_CAR_BODY = np.array([0, 0, 1, 1, 2, 2, 3, 3] + [4] * len(_QUADS))
"""To which body each of the car's shapes belongs: four wheels, the hull."""
_WHEEL = np.array([car_dynamics.WHEEL_W, car_dynamics.WHEEL_R])
_TYRE = [(-1, 1), (1, 1), (1, -1), (-1, -1)] * _WHEEL
_CAR = np.array([*[_TYRE] * 8, *_QUADS]) * car_dynamics.SIZE
"""The car's shapes, [P, 4, 2]: of each wheel the tyre and its light stripe, then the hull."""


def _car(phases: list[float]) -> np.ndarray:
    """The car's shapes [P, 4, 2], in metres from the middle of the body that each belongs to.

    The wheels have turned by `phases`, as their light stripes show.
    """
    shapes = _CAR.copy()
    for wheel, phase in enumerate(phases):
        begin, begin_hidden = _on_wheel(phase)
        end, end_hidden = _on_wheel(phase + 1.2)
        stripe = np.array([begin, begin, -end, -end])
        shapes[2 * wheel + 1, :, 1] *= 0 if begin_hidden and end_hidden else stripe
    return shapes


def _on_wheel(angle: float) -> tuple[float, bool]:
    """(where along a wheel, −1…1, a line on its tyre is seen, whether it is on the far side)."""
    cos = math.cos(angle)
    hidden = math.sin(angle) > 0
    return (math.copysign(1, cos) if hidden else cos), hidden


def _rotation(angle: np.ndarray) -> np.ndarray:
    """Matrices [B, 2, 2] that turn row vectors by `angle` [B]."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, sin], [-sin, cos]]).transpose(2, 0, 1)


@cache
def _grass() -> np.ndarray:
    """The lighter squares of the ground, [400, 4, 2]."""
    side = np.arange(-20, 20, 2)
    first = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 1, 2)
    corners = np.array([(1, 0), (0, 0), (0, 1), (1, 1)])
    return (first + corners) * car_racing.GRASS_DIM


@lru_cache(4096)
def _text(text: str) -> np.ndarray:
    """uint8 [12, 12, 3]: the lower left corner of the image, with `text` in it."""
    pygame.font.init()
    width = car_racing.WINDOW_W * _TEXT // SIZE
    height = car_racing.WINDOW_H * _TEXT // SIZE
    window = pygame.Surface((width, height), depth=24)
    font = pygame.font.Font(pygame.font.get_default_font(), 42)
    written = font.render(text, True, _WHITE, _BLACK)
    middle = (60, height - car_racing.WINDOW_H * 2.5 / 40)
    window.blit(written, written.get_rect(center=middle))
    small = pygame.transform.smoothscale(window, (_TEXT, _TEXT))
    return pygame.surfarray.array3d(small).swapaxes(0, 1)


gymnasium.register(
    "rlx/CarRacing-v3", f"{__name__}:CarRacing", max_episode_steps=1000, reward_threshold=900
)
