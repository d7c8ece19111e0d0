"""What a radius means: names and units, scales that belong to an env, the circle of an angle."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import compose

from rlx.agent import Scores
from rlx.attacks.fgsm import FGSM
from rlx.attacks.noise import Noise
from rlx.attacks.pgd import PGD
from rlx.checks.envs import env_checks
from rlx.conf import conf_dir
from rlx.env import time_limit_words
from rlx.errors import ConfigError
from rlx.evaluation import REPORT
from rlx.experiment import env_spec, make_env, typed_env
from rlx.policies import Opened
from rlx.robustness import reference
from rlx.robustness.manifold import kept_angles, off_circle
from rlx.robustness.scale import describe, rounding, unit_scale
from rlx.robustness.sweep import Game, sweep
from rlx.threat import Boxes, Budget, Mode


def env(*overrides: str, num_envs: int = 1):
    """Copies of the env of these overrides."""
    return make_env(compose("train", *overrides).env, num_envs, "cpu")


def test_what_envs_say_of_their_components():
    acrobot = env("env=acrobot")
    assert acrobot.observation_units[4:] == ("θ1' (rad/s)", "θ2' (rad/s)")
    assert acrobot.angles == ((0, 1), (2, 3)) and acrobot.lowest_reward == -1
    assert env("env=cartpole").observation_units[2] == "angle (rad)"
    assert env("env=cartpole").angles == ()
    assert env("env=cartpole_frames").observation_units is None
    assert env("env=pendulum").lowest_reward == pytest.approx(-16.2736, abs=1e-4)
    assert env("env=taxi").lowest_reward == -10
    known_to_gymnasium = env("env=gym", "env.id=Acrobot-v1")
    assert known_to_gymnasium.observation_units is None and known_to_gymnasium.angles == ()


def test_a_view_names_what_it_shows():
    view = env("env=acrobot", "+env.observe=[3,4,2]", "+env.stack=2")
    shown = ("sin θ2", "θ1' (rad/s)", "cos θ2")
    assert view.observation_units == (*(f"{name}, 1 ago" for name in shown), *shown)
    assert view.angles == ((2, 0), (5, 3))
    obs, _ = view.reset(seed=3)
    torch.testing.assert_close(obs[:, 2].square() + obs[:, 0].square(), torch.ones(1))


@pytest.mark.parametrize("overrides", [["env=acrobot", "+env.stack=2"], ["env=pendulum"]])
def test_the_check_of_an_env_looks_at_what_it_says(overrides):
    holds = list(env_checks(compose("train", *overrides).env))
    assert holds[-1].startswith("what it says of its observations and rewards holds")


def test_the_time_limit_is_harm_only_where_the_env_says_so():
    assert "has failed" in time_limit_words(env("env=acrobot"))
    assert "one of the best" in time_limit_words(env("env=cartpole"))
    # Pendulum has no other end, and of Gymnasium's envs nobody has said anything.
    assert time_limit_words(env("env=pendulum")) is None
    assert time_limit_words(env("env=gym", "env.id=CartPole-v1")) is None


# The circle of an angle


def circled(rows: int):
    """Clean observations [1, rows, 3] of an angle and a number, and radii of all sizes and of 0."""
    generator = torch.Generator().manual_seed(0)
    angle = (torch.rand(1, rows, generator=generator) * 2 - 1) * math.pi
    angle[:, :40] = torch.tensor([0, 0.5, 1, -0.5]).repeat(10) * math.pi
    number = torch.randn(1, rows, generator=generator)
    obs = torch.stack([angle.cos(), angle.sin(), number], -1)
    # From 0.0003 to 3: boxes with a short arc in them, with several arcs, with the whole circle.
    radius = 10 ** (torch.rand(1, rows, 3, generator=generator) * 4 - 3.5)
    radius[:, ::5] = 0
    radius[:, 1::7, 0] = 0
    radius[:, 2::9, 1] = 0
    moved = obs + radius * (torch.rand(1, rows, 3, generator=generator) * 4 - 2)
    high = torch.tensor([1, 1, torch.inf])
    return obs, Budget(radius, -high, high, angles=((0, 1),)), moved


def test_an_angle_stays_on_its_circle_and_in_its_box():
    obs, box, moved = circled(20_000)
    shown = box.project(moved, obs)
    assert ((shown - obs).abs() <= box.radius + 3e-7).all()
    assert (shown[..., :2].double().square().sum(-1) - 1).abs().max() < 1e-6
    assert torch.equal(shown[:, ::5], obs[:, ::5])  # radius 0
    assert torch.equal(box.project(shown, obs), shown)
    whole_box = Budget(box.radius, box.low, box.high)
    assert torch.equal(shown[..., 2], whole_box.project(moved, obs)[..., 2])


def test_it_goes_to_the_nearest_point_that_circle_and_box_share():
    obs, box, moved = circled(1_000)
    shown = box.project(moved, obs)[..., :2].double()
    direction = torch.linspace(-math.pi, math.pi, 20_001).double()
    circle = torch.stack([direction.cos(), direction.sin()], -1)
    compared = 0
    for row in range(1_000):
        centre = obs[0, row, :2].double()
        inside = ((circle - centre).abs() <= box.radius[0, row, :2]).all(-1)
        if inside.any():
            wanted = moved[0, row, :2].double()
            nearest = (circle[inside] - wanted).norm(dim=-1).min()
            assert (shown[0, row] - wanted).norm() < nearest + 1e-6
            compared += 1
    assert compared > 500


def test_all_of_a_turn_can_be_shown_where_the_box_holds_it():
    obs = torch.tensor([[[1.0, 0.0]]])
    high = torch.ones(2)
    box = Budget(torch.full_like(obs, 2.0), -high, high, angles=((0, 1),))
    back = box.project(torch.tensor([[[-0.3, 0.0]]]), obs)
    torch.testing.assert_close(back, torch.tensor([[[-1.0, 0.0]]]))
    assert torch.equal(box.project(torch.zeros_like(obs), obs), obs)  # no direction


def test_how_far_a_box_leaves_the_circle():
    acrobot = env("env=acrobot")
    spec = env_spec(compose("train", "env=acrobot").env)
    # At 45°, both components 0.03 farther out: 2 (√½ + 0.03)² − 1.
    words = off_circle(np.ones(6), 0.03, spec, acrobot)
    assert f"by up to {2 * (math.sqrt(0.5) + 0.03) ** 2 - 1:.2g};" in words
    assert off_circle(np.ones(4), 0.03, spec, env("env=cartpole")) is None


def test_only_envs_with_angles_have_a_manifold():
    assert kept_angles(None, env("env=cartpole")) == ()
    assert kept_angles("angle", env("env=acrobot")) == ((0, 1), (2, 3))
    with pytest.raises(ConfigError, match="manifold=angle: this env names no angles"):
        kept_angles("angle", env("env=cartpole"))
    with pytest.raises(ConfigError, match="manifold=angel: .* 'angle'"):
        kept_angles("angel", env("env=acrobot"))


# What a radius is


def described(eps: float, scale, *overrides: str) -> str:
    """What the printed line says of a radius in the env of these overrides."""
    spec = env_spec(compose("train", *overrides).env)
    return describe(np.asarray(scale), eps, spec, env(*overrides).observation_units)


def test_radii_are_told_in_the_units_of_the_env():
    bounds = [1, 1, 1, 1, 4 * math.pi, 9 * math.pi]
    text = described(0.03, bounds, "env=acrobot")
    assert text.startswith("cos θ1 ±0.03, sin θ1 ±0.03, ")
    assert text.endswith("θ1' ±0.377 rad/s, θ2' ±0.848 rad/s")
    # Of a stack, the newest alone can be moved.
    assert described(0.03, bounds * 2, "env=acrobot", "+env.stack=2") == text
    unnamed = described(1, [1, 2, 3, 4], "env=gym", "env.id=CartPole-v1")
    assert unnamed == "obs[0] ±1, obs[1] ±2, obs[2] ±3, obs[3] ±4"
    assert described(0.1, np.full(50, 0.5), "env=catch") == "50 components, each ±0.05"


def test_a_radius_in_gray_levels_is_the_one_that_is_played():
    pixels = np.full((1, 84, 84), 127.5)
    assert described(0.01, pixels, "env=cartpole_frames") == "±1 gray level (1.28 rounded down)"
    assert described(0.02 * 150 / 127.5, pixels, "env=cartpole_frames") == "±3 gray levels"
    spec = env_spec(compose("train", "env=cartpole_frames").env)
    words = rounding([0, 0.005, 0.02, 2 / 127.5], pixels, spec)
    assert words == "gray levels are whole: eps 0.005 plays 0 of 0.638, 0.02 plays 2 of 2.55"
    assert rounding([0, 2 / 127.5], pixels, spec) is None
    # And so says the box itself.
    obs = torch.zeros(1, 1, 1, 84, 84)
    boxes = Boxes.of(spec.observation_space, torch.full(obs.shape[2:], 127.5))
    assert boxes.around(obs, torch.full((1, 1), 0.01)).radius.unique().tolist() == [1]
    assert rounding([0.01], np.ones(4), env_spec(compose("train", "env=cartpole").env)) is None


# Scales that belong to an env


REFERENCES = sorted(Path(conf_dir(), reference.FOLDER).glob("*.yaml"))


@pytest.mark.parametrize("file", REFERENCES, ids=lambda file: file.stem)
def test_every_reference_is_of_the_env_of_its_name(file):
    node = typed_env(compose("train", f"env={file.stem}").env)
    found, values = reference.find(node)
    assert found == file
    space = env_spec(node).observation_space
    assert len(values.scale) == space.shape[0] and min(values.scale) > 0
    assert unit_scale(values.scale, space, np.zeros).tolist() == values.scale


def test_a_reference_of_another_env_is_refused_with_what_differs():
    moon = typed_env(compose("train", "env=cartpole", "env.gravity=1.6").env)
    with pytest.raises(ConfigError, match=r"cartpole.yaml is of env.gravity=9.8. .*rlx scale RUN"):
        reference.find(moon)
    with pytest.raises(ConfigError, match="no file of conf/reference is about this env. Make one"):
        reference.find(typed_env(compose("train", "env=catch").env))


def test_a_scale_is_measured_once_and_counts_for_every_agent(rlx, tiny_runs):
    run = tiny_runs / "train/dqn-cartpole"
    made = rlx("scale", run, "out=conf/reference/mine.yaml")
    assert made.code == 0, made.err
    assert "angular speed ±" in made.out and made.out.endswith("conf/reference/mine.yaml\n")
    text = yaml.safe_load(Path("conf/reference/mine.yaml").read_text())
    assert text["policies"] == "dqn-cartpole, seeds 0–1, checkpoint best" and text["commit"]
    small = ("attack=fgsm", "seeds=1", "episodes=2", "eps=[0,0.1]")
    # The user's own file comes before rlx's of the same env.
    referred = rlx("attack", run, "scale=reference", *small)
    assert "conf/reference/mine.yaml: dqn-cartpole" in referred.out
    assert referred.summary["scale"] == text["scale"]
    assert referred.summary["units"][2] == "angle (rad)"
    assert f"eps 0.1  position ±{0.1 * text['scale'][0]:.3g} m, " in referred.out
    played = rlx("attack", run, f"scale=std:{run}", *small)
    np.testing.assert_allclose(played.summary["scale"], text["scale"], rtol=1e-5)
    assert "one of the best" in played.out
    again = rlx("scale", run, "out=conf/reference/mine.yaml")
    assert again.code == 2 and "expected a new file" in again.err


def test_scales_that_do_not_fit_are_refused_on_one_line(rlx, tiny_runs):
    cartpole = tiny_runs / "train/dqn-cartpole"
    acrobot = tiny_runs / "train/hdqn-acrobot"
    rlx("scale", cartpole, "out=conf/reference/broken.yaml", "episodes=1")
    file = Path("conf/reference/broken.yaml")
    file.write_text(file.read_text().replace("scale:", "scales:"))
    refused = {
        "scale=refrence": "Did you mean 'reference'",
        f"scale=std:{acrobot}": "is of another env",
        "scale=std:": "write the run behind it",
        "scale=std:nowhere": "no such run directory",
        "scale=reference": "broken.yaml: no scale of an env (scales: unknown key",
        "manifold=angle": "this env names no angles",
    }
    for override, message in refused.items():
        result = rlx("attack", cartpole, override, "eps=0.1", "attack=fgsm")
        assert result.code == 2 and message in result.err, (override, result.err)
        assert len(result.err.splitlines()) == 1


class Looking(torch.nn.Module):
    """Decides by the sum of what it sees, and notes it."""

    heads = ("action",)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.shown: list[torch.Tensor] = []

    def initial_carry(self, batch):
        return {}

    def act(self, obs, first, carry, choose):
        seen = []

        def scores(obs):
            seen.append(obs.detach().clone())
            return torch.stack([obs.sum(-1), -obs.sum(-1), 0 * obs.sum(-1)], -1)

        action = choose("action", obs, Scores(scores), torch.ones_like(first))
        self.shown.append(seen[-1])
        return action, carry


@pytest.mark.parametrize(
    "attack",
    [FGSM("margin", None), PGD("margin", None, 3, 0.5, 2, True), Noise("corners", 1, False)],
)
def test_an_attack_with_manifold_angle_shows_only_real_angles(attack):
    node = {"_target_": "rlx.envs.acrobot.Acrobot", "stack": 2, "max_episode_steps": 5}
    policy = Looking()
    copies = make_env(node, 1, "cpu")
    opened = Opened(policy, env_spec(node), [0], node, 0, torch.device("cpu"))
    angles = kept_angles("angle", copies)
    game = Game(opened, [0.3], np.ones(12), 20, REPORT, 100, angles)
    sweep(game, attack, {"action": Mode(("action",), shared=False)})
    shown = torch.cat(policy.shown)
    assert len(shown) >= 5 and shown.shape[1:] == (20, 12)
    for pair in copies.angles:
        off = shown[..., list(pair)].double().square().sum(-1) - 1
        assert off.abs().max() < 1e-6
    clean, _ = copies.reset(seed=2_000_000)
    moved = (shown[0, 0, 6:] - clean[0, 6:]).abs()
    assert 0.2 < moved.max() <= 0.3 + 1e-6
