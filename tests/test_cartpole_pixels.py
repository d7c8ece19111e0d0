"""CartPole's images are Gymnasium's, its physics is CartPole's, and what moved is what differs."""

import gymnasium
import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

import rlx.envs  # noqa: F401 (registers)
from rlx.envs.cartpole_pixels import CartPolePixels
from rlx.errors import ConfigError
from rlx.experiment import make_env

VIEWS = ["difference", "frames"]


def make(view: str, num_envs: int):
    return gymnasium.make_vec("rlx/CartPolePixels-v1", num_envs=num_envs, view=view).unwrapped


@pytest.fixture(scope="module")
def shots():
    """200 states [200, 8] and Gymnasium's screens [200, 2, 3, 400, 600] of both their halves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDL_VIDEODRIVER", "dummy")
        env = gymnasium.make("CartPole-v1", render_mode="rgb_array").unwrapped
        env.reset()
        rng = np.random.default_rng(0)
        now = rng.uniform([-2.45, -3, -0.22, -3], [2.45, 3, 0.22, 3], (200, 4))
        states = np.stack([now, now + rng.uniform(-0.05, 0.05, now.shape)], 1)
        screens = np.empty((200, 2, 3, 400, 600), np.uint8)
        for place in np.ndindex(200, 2):
            env.state = states[place]
            screens[place] = env.render().transpose(2, 0, 1)
        env.close()
    return torch.from_numpy(states).float().flatten(1), torch.from_numpy(screens)


def means(pixels: int, size: int) -> torch.Tensor:
    """Weights [pixels, size] of screen pixels in `pixels` equal areas."""
    edges = torch.linspace(0, size, pixels + 1)
    return (edges[:, None] - torch.arange(size)).clamp(0, 1).diff(dim=0) * pixels / size


def test_frames_are_gymnasiums_image(shots):
    states, screens = shots
    rows, columns = means(84, 400), means(84, 600)
    theirs = torch.stack([rows @ screen.float() @ columns.T for screen in screens[:, 0]])
    theirs = theirs.movedim(1, -1) @ torch.tensor([0.299, 0.587, 0.114])
    mine = CartPolePixels(view="frames").observe(states)[:, 0]
    error = (mine - theirs).abs()
    drawn = theirs < 254
    assert error.mean() <= 0.08 and error[drawn].mean() <= 2
    assert abs(float((mine - theirs)[drawn].mean())) <= 0.3
    assert np.quantile(error, 0.999) <= 12 and error.max() <= 30


def test_differences_are_those_of_the_tutorials_patches(shots):
    states, screens = shots
    patches = torch.empty(200, 2, 3, 40, 90)
    for i, j in np.ndindex(200, 2):
        first = min(max(int(states[i, 4 * j] * 125 + 300) - 180, 0), 240)
        patches[i, j] = avg_pool2d(screens[i, j, :, 160:320, first : first + 360].float(), 4)
    dynamics = CartPolePixels(view="difference")
    error = (dynamics.draw(states[:, :4]) - patches[:, 0]).abs()
    # A pixel of Gymnasium's screen, by which it rounds positions, is a quarter of a patch's pixel.
    assert error.mean() <= 0.4 and np.quantile(error, 0.999) <= 40 and error.max() <= 85
    error = (dynamics.observe(states) * 255 - (patches[:, 0] - patches[:, 1])).abs()
    assert error.mean() <= 0.5 and np.quantile(error, 0.999) <= 40 and error.max() <= 100


@pytest.mark.parametrize("view", VIEWS)
def test_physics_is_cartpoles(view):
    seen, plain = make(view, 5), gymnasium.make_vec("rlx/CartPole-v1", num_envs=5).unwrapped
    obs, _ = seen.reset(seed=3)
    first, _ = plain.reset(seed=3)
    rng, ends = np.random.default_rng(0), 0
    for _ in range(60):
        torch.testing.assert_close(seen.state[:, :4], first, rtol=1e-4, atol=1e-4)
        assert seen.single_observation_space.contains(obs[0].numpy())
        action = rng.integers(2, size=5)
        obs, *mine, _ = seen.step(action)
        first, *theirs, _ = plain.step(action)
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
        ends += int(mine[1].sum())
    assert ends > 2


LEVEL = {"frames": 1, "difference": 1e-5}
"""By how much rounding may change a pixel: by a level of 256, or a little of 1."""


@pytest.mark.rounding
@pytest.mark.parametrize("view", VIEWS)
def test_an_image_does_not_depend_on_those_beside_it(view):
    dynamics = CartPolePixels(view=view)
    states = torch.rand(33, 8, generator=torch.Generator().manual_seed(0)) * 0.4 - 0.2
    together = dynamics.observe(states).double()
    alone = torch.cat([dynamics.observe(state[None]) for state in states]).double()
    seven = dynamics.observe(states[:7]).double()
    for other, same in ((alone, together), (seven, together[:7])):
        off = (other - same).abs()
        assert off.max() <= LEVEL[view] and (off > 1e-5).double().mean() < 1e-3


@pytest.mark.rounding
def test_difference_is_now_less_before_and_starts_at_zero():
    env = make("difference", 4)
    obs, _ = env.reset(seed=0)
    assert obs.abs().max() < 1e-5
    for _ in range(30):
        before = env.dynamics.draw(env.state[:, :4])
        obs, _, terminated, _, info = env.step(torch.ones(4, dtype=torch.int64))
        now = env.dynamics.draw(env.state[:, :4])
        expected = ((now - before) / 255)[~terminated]
        torch.testing.assert_close(obs[~terminated], expected, rtol=0, atol=1e-5)
        assert (info["final_obs"].flatten(1).abs().amax(1) > 1e-3).all()
        assert (obs[terminated].abs() < 1e-5).all()


def test_config_names_the_views(composed):
    for name, space in (
        ("cartpole_pixels", ((3, 40, 90), np.float32)),
        ("cartpole_frames", ((1, 84, 84), np.uint8)),
    ):
        config = composed("train", "agent=dqn", f"env={name}")
        box = make_env(config.env, 2, "cpu").single_observation_space
        assert (box.shape, box.dtype) == space
    with pytest.raises(ConfigError, match="frames"):
        CartPolePixels(view="frame")
