"""Gymnasium's CarRacing with the picture drawn at its own size; in gray, by 25 actions and several frames at a time if wanted."""

import math
from functools import cache, lru_cache
from typing import Any

import gymnasium
import numpy as np
import pygame
from gymnasium import spaces
from gymnasium.envs.box2d import car_dynamics, car_racing
from gymnasium.error import InvalidAction
from gymnasium.utils import EzPickle

from rlx.config import at_least

SIZE = 96
"""Rows and columns of a picture …"""
_FINE = 2
"""… and points that are drawn for each of its pixels, along each axis."""
_POINTS = SIZE * _FINE
_SCALE = np.array([_POINTS / car_racing.WINDOW_W, -_POINTS / car_racing.WINDOW_H])
"""From Gymnasium's window to our points, whose rows go down."""
_CAR_AT = np.array([0.5, 0.75]) * _POINTS
_DASHBOARD = 84
"""The first of its rows."""
_TEXT = 12
"""Rows and columns of the text in its corner."""
_GRAY = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue (ITU-R BT.601)."""

_PEDALS = ((0, 0), (0.5, 0), (1, 0), (0, 0.5), (0, 1))
ACTIONS = np.array(
    [(0, *pedals) for pedals in _PEDALS]
    + [(side * steer, *pedals) for side in (-1, 1) for pedals in _PEDALS for steer in (0.5, 1)],
    np.float32,
)
"""Steer, gas and brake of 25 actions: straight on, left, right; of each: roll, half and full gas, half and full brake."""


class CarRacing(car_racing.CarRacing):
    """Tracks, physics and rewards are Gymnasium's, to the bit; so are the pictures, but for where the edges of shapes fall among the
    pixels, and for 2 of 255 by which pygame's scaling darkens Gymnasium's.

    Gymnasium draws 1000 × 800 points and shrinks them, which takes nearly all of its time.
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
        """`continuous` false: the 25 `ACTIONS`. `repeat`: frames per step. `gray`: observations uint8 [1, 96, 96], else [3, 96, 96].
        `dashboard` false: its rows are 0. `patience`: frames without a new tile after which the episode is cut."""
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
        self.repeat, self.gray, self.dashboard = repeat, gray, dashboard
        self.patience = math.inf if patience is None else patience
        self.table = None if continuous else ACTIONS
        if self.table is not None:
            self.action_space = spaces.Discrete(len(self.table))
        self.observation_space = spaces.Box(0, 255, (1 if gray else 3, SIZE, SIZE), np.uint8)
        self._canvas = pygame.Surface((_POINTS, _POINTS), depth=8 if gray else 24)
        if gray:
            self._canvas.set_palette(_LEVELS)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """As Gymnasium's, `repeat` frames on or to the episode's end."""
        total, truncated = 0.0, False
        if action is None:  # the first frame, for `reset`
            self._idle = 0
            _, _, terminated, _, info = super().step(None)  # type: ignore[arg-type]
        else:
            if self.table is not None and not self.action_space.contains(action):
                raise InvalidAction(f"action {action}: not in {self.action_space}.")
            controls = action if self.table is None else self.table[action]
            for _ in range(self.repeat):
                visited = self.tile_visited_count
                _, reward, terminated, _, info = super().step(controls)
                total += reward
                self._idle = 0 if self.tile_visited_count > visited else self._idle + 1
                truncated = not terminated and self._idle >= self.patience
                if terminated or truncated:
                    break
        self.state = self.picture()
        return self.state, total, terminated, truncated, info

    def render(self) -> Any:
        """As Gymnasium's; "state_pixels": the observation as uint8 [96, 96, 3]."""
        if self.render_mode != "state_pixels" or self.car is None:
            return super().render()
        return np.repeat(self.state, 3 // len(self.state), 0).transpose(1, 2, 0)

    def picture(self) -> np.ndarray:
        """The observation: uint8 [C, 96, 96]."""
        surface = self._drawn()
        if self.gray:
            points = pygame.surfarray.pixels2d(surface).T[..., None]
            rows = np.add(points[::2], points[1::2], dtype=np.uint16)
            pixels = (rows[:, ::2] + rows[:, 1::2] + 2 >> 2).astype(np.uint8)
        else:  # the same, to 1 of 255; pygame does not scale 8-bit surfaces
            pixels = pygame.surfarray.array3d(
                pygame.transform.smoothscale(surface, (SIZE, SIZE))
            ).swapaxes(0, 1)
        if self.dashboard:
            pixels[-_TEXT:, :_TEXT] = _text(f"{self._score:04.0f}")[..., : pixels.shape[-1]]
        else:
            pixels[_DASHBOARD:] = 0
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _create_track(self) -> bool:
        if not super()._create_track():
            return False
        road, colours = zip(*self.road_poly, strict=True)
        self._scenery = np.concatenate([_grass(), road])
        self._centres = self._scenery.mean(1)
        self._reach = np.abs(self._scenery - self._centres[:, None]).sum(-1).max(1, keepdims=True)
        self._inks = [
            self._ink(colour) for colour in [self.grass_color] * len(_grass()) + list(colours)
        ]
        self._ground = self._ink(self.bg_color)
        self._car_inks = [self._ink(colour) for colour in _CAR_COLOURS]
        self._bar_inks = [self._ink(colour) for colour in _BAR_COLOURS]
        return True

    def _ink(self, colour: Any) -> tuple[int, int, int]:
        """With what `colour` is drawn."""
        red, green, blue = (
            np.repeat(np.rint(_GRAY @ colour), 3).astype(int)
            if self.gray
            else np.asarray(colour).astype(int)
        )
        return int(red), int(green), int(blue)

    def _render(self, mode: str) -> Any:
        if mode != "state_pixels":
            return super()._render(mode)
        self._score = (
            self.reward
        )  # Gymnasium shows it without this frame's cost; `step` draws when it has ended

    def _drawn(self) -> pygame.Surface:
        assert self.car is not None
        surface = self._canvas
        surface.fill(0)
        bodies = [*self.car.wheels, self.car.hull]
        at, turned = (
            np.array([body.position for body in bodies]),
            np.array([body.angle for body in bodies]),
        )
        zoom = car_racing.SCALE * (0.1 * max(1 - self.t, 0) + car_racing.ZOOM * min(self.t, 1))
        view = _rotation(-turned[-1:])[0] * (zoom * _SCALE)
        scenery = (self._centres - at[-1]) @ view + _CAR_AT
        visible = (
            (np.abs(scenery - _POINTS / 2) < _POINTS / 2 + self._reach * zoom * np.abs(_SCALE))
            .all(1)
            .nonzero()[0]
        )
        car = (
            _car([wheel.phase for wheel in self.car.wheels]) @ _rotation(turned)[_CAR_BODY]
            + at[_CAR_BODY, None]
        )
        world = np.concatenate([_FIELD, self._scenery[visible], car])
        shapes = np.concatenate([(world - at[-1]) @ view + _CAR_AT, self._bars() * (_POINTS / 40)])
        inks = [
            self._ground,
            *(self._inks[i] for i in visible.tolist()),
            *self._car_inks,
            *self._bar_inks,
        ]
        # pygame draws a shape's edge too, half a point too much on every side.
        outwards = np.sign(shapes - shapes.mean(1, keepdims=True))
        empty = (np.ptp(shapes, axis=1) < 1e-2).any(1).tolist()
        corners = np.rint(shapes - 0.5 - 0.5 * outwards).astype(int).tolist()
        for ink, polygon, nothing in zip(inks, corners, empty, strict=True):
            if not nothing:
                pygame.draw.polygon(surface, ink, polygon)
        return surface

    def _bars(self) -> np.ndarray:
        """The dashboard and what it shows, [8, 4, 2], in 40ths of the picture."""
        assert self.car is not None
        wheels, hull = self.car.wheels, self.car.hull
        heights = [
            0.02 * math.hypot(*hull.linearVelocity),
            *(0.01 * wheel.omega for wheel in wheels),
        ]
        boxes = [
            (0, 35, 40, 40),
            *(
                (x, 39 - height, x + 1, 39)
                for x, height in zip((5, 7, 8, 9, 10), heights, strict=True)
            ),
        ]
        boxes += [
            (20, 36, 20 - 10 * wheels[0].joint.angle, 38),
            (30, 36, 30 - 0.8 * hull.angularVelocity, 38),
        ]
        return np.array(boxes)[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]


_LEVELS = [(level, level, level) for level in range(256)]
_FIELD = np.array([[(1, 1), (1, -1), (-1, -1), (-1, 1)]]) * car_racing.PLAYFIELD
_WHITE, _RED, _BLACK = (255, 255, 255), (204, 0, 0), (0, 0, 0)
_BAR_COLOURS = [
    _BLACK,
    _WHITE,
    (0, 0, 255),
    (0, 0, 255),
    (51, 0, 255),
    (51, 0, 255),
    (0, 255, 0),
    (255, 0, 0),
]
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
_TYRE = [(-1, 1), (1, 1), (1, -1), (-1, -1)] * np.array(
    [car_dynamics.WHEEL_W, car_dynamics.WHEEL_R]
)
_CAR = np.array([*[_TYRE] * 8, *_QUADS]) * car_dynamics.SIZE


def _car(phases: list[float]) -> np.ndarray:
    """The car's shapes [P, 4, 2], each as its body has it; the wheels have turned by `phases`, as their light stripes show."""
    shapes = _CAR.copy()
    for i, phase in enumerate(phases):
        (s1, c1), (s2, c2) = ((math.sin(a), math.cos(a)) for a in (phase, phase + 1.2))
        c1, c2 = (math.copysign(1, c) if s > 0 else c for s, c in ((s1, c1), (s2, c2)))
        hidden = s1 > 0 and s2 > 0
        shapes[2 * i + 1, :, 1] *= 0 if hidden else np.array([c1, c1, -c2, -c2])
    return shapes


def _rotation(angle: np.ndarray) -> np.ndarray:
    """Matrices [B, 2, 2] that turn row vectors by `angle` [B]."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, sin], [-sin, cos]]).transpose(2, 0, 1)


@cache
def _grass() -> np.ndarray:
    """The lighter squares [400, 4, 2]."""
    corner = np.stack(
        np.meshgrid(np.arange(-20, 20, 2), np.arange(-20, 20, 2), indexing="ij"), -1
    ).reshape(-1, 1, 2)
    return (corner + np.array([(1, 0), (0, 0), (0, 1), (1, 1)])) * car_racing.GRASS_DIM


@lru_cache(4096)
def _text(text: str) -> np.ndarray:
    """uint8 [12, 12, 3]: the picture's lower left corner."""
    pygame.font.init()
    window = pygame.Surface(
        (car_racing.WINDOW_W * _TEXT // SIZE, car_racing.WINDOW_H * _TEXT // SIZE), depth=24
    )
    written = pygame.font.Font(pygame.font.get_default_font(), 42).render(
        text, True, _WHITE, _BLACK
    )
    window.blit(
        written, written.get_rect(center=(60, window.get_height() - car_racing.WINDOW_H * 2.5 / 40))
    )
    return pygame.surfarray.array3d(pygame.transform.smoothscale(window, (_TEXT, _TEXT))).swapaxes(
        0, 1
    )


gymnasium.register(
    "rlx/CarRacing-v3", f"{__name__}:CarRacing", max_episode_steps=1000, reward_threshold=900
)
