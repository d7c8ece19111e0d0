"""Policies of others decide as in their own library, and are attacked as any; wrong files."""

import base64
import io
import itertools
import json
import math
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from rlx.agent import Scores, Spec
from rlx.attacks.fgsm import FGSM
from rlx.attacks.nes import NES
from rlx.attacks.pgd import PGD
from rlx.attacks.random_search import RandomSearch
from rlx.attacks.square import Square
from rlx.config import plain
from rlx.nn.seed_axis import take
from rlx.runs import trust
from rlx.runs.files import sha256
from rlx.threat import Budget
from rlx.victims import sb3
from rlx.victims.files import VictimFile, Victims
from rlx.victims.opening import open_victims
from rlx.victims.policy import Network, Rows

CPU = torch.device("cpu")
GENERATOR = torch.Generator().manual_seed(0)
BOMB = base64.b64encode(b"cposix\nsystem\n(S'touch unpickled'\ntR.").decode()
"""A pickle that makes a file `unpickled` where it is loaded."""


def env_node(name, composed, *overrides):
    return plain(composed("train", f"env={name}", *overrides).env)


@pytest.fixture
def opened(composed, tmp_path, monkeypatch):
    """opened("sb3:a.zip", "cartpole") are the policies, in a folder of their own."""
    monkeypatch.chdir(tmp_path)

    def call(victim, env, *overrides, **keys):
        return open_victims(Victims.of(victim, env_node(env, composed, *overrides), **keys), CPU)

    return call


def save_sb3(file, layers, policy_kwargs=None, **data):
    """A zip in the layout of SB3: `layers`, modules with weights by their names there."""
    tensors = {}
    for name, layer in layers.items():
        tensors |= {f"{name}.{part}": tensor for part, tensor in layer.state_dict().items()}
    weights = io.BytesIO()
    torch.save(tensors, weights)
    serialized = {":type:": "<class 'abc.ABCMeta'>", ":serialized:": BOMB}
    content = {"policy_class": serialized, "policy_kwargs": policy_kwargs or {}} | data
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", json.dumps(content))
        archive.writestr("policy.pth", weights.getvalue())


def net(*sizes, activation=nn.Tanh):
    """A fully connected network of torch's own."""
    parts = []
    for inputs, outputs in itertools.pairwise(sizes):
        parts += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*parts[:-1]).requires_grad_(False)


def save_ppo(file, model, **data):
    """`model`, of one hidden layer or two, as the policy of PPO."""
    *hidden, last = [part for part in model if isinstance(part, nn.Linear)]
    layers = {f"mlp_extractor.policy_net.{2 * i}": layer for i, layer in enumerate(hidden)}
    # What the value is computed by is there too, and is none of the policy's.
    value = {"mlp_extractor.value_net.0": nn.Linear(4, 8), "value_net": nn.Linear(8, 1)}
    save_sb3(file, layers | {"action_net": last} | value, **data)


def scores(policy, obs):
    """The scores [S, B, A] of a policy at the same `obs` [B, *O] for each seed."""
    seeds = len(next(iter(policy.state_dict().values())))
    return policy.scores(obs.expand(seeds, *obs.shape), {}, "action")


OBS = torch.randn(50, 4, generator=GENERATOR)


def test_ppo_of_sb3_decides_by_its_own_network_and_nothing_is_unpickled(opened, tmp_path):
    model = net(4, 8, 8, 2)
    save_ppo("a.zip", model)
    found = opened("sb3:a.zip", "cartpole")
    assert torch.allclose(scores(found.policy, OBS)[0], model(OBS), atol=1e-6)
    assert not found.policy.scores_are_values and not (tmp_path / "unpickled").exists()


def test_dqn_of_sb3_has_values_and_its_own_activation(opened):
    model = net(4, 8, 2, activation=nn.ELU)
    layers = {"q_net.q_net.0": model[0], "q_net.q_net.2": model[2]}
    save_sb3("a.zip", layers, {"activation_fn": "<class 'torch.nn.modules.activation.ELU'>"})
    policy = opened("sb3:a.zip", "cartpole").policy
    assert torch.allclose(scores(policy, OBS)[0], model(OBS), atol=1e-6)
    assert policy.scores_are_values
    other = opened("sb3:a.zip", "cartpole", activation="relu").policy
    assert not torch.allclose(scores(other, OBS)[0], model(OBS), atol=1e-2)


def test_the_values_of_qr_dqn_are_the_means_of_its_quantiles(opened, rlx):
    model = net(4, 8, 6, activation=nn.ReLU)  # three quantiles of two actions
    layers = {f"quantile_net.quantile_net.{number}": model[number] for number in (0, 2)}
    save_sb3("a.zip", layers)
    policy = opened("sb3:a.zip", "cartpole").policy
    means = model(OBS).unflatten(-1, (3, 2)).mean(1)
    assert torch.allclose(scores(policy, OBS)[0], means, atol=1e-6)
    assert policy.scores_are_values
    for env, actions in (("env=pendulum", "Box"), ("env=gym env.id=LunarLander-v3", "Discrete(4)")):
        refused = rlx("evaluate", "victim=sb3:a.zip", *env.split())
        assert refused.code == 2 and len(refused.err.splitlines()) == 1
        assert "sees 4 numbers" in refused.err or actions in refused.err


@pytest.mark.parametrize("algorithm", ["sac", "td3"])
def test_actions_of_sac_and_td3_are_stretched_to_the_bounds(algorithm, opened):
    model = net(3, 8, 1, activation=nn.ReLU)
    names = {"sac": ("actor.latent_pi.0", "actor.mu"), "td3": ("actor.mu.0", "actor.mu.2")}
    save_sb3("a.zip", dict(zip(names[algorithm], (model[0], model[2]), strict=True)))
    policy = opened("sb3:a.zip", "pendulum").policy
    obs = torch.randn(20, 3, generator=GENERATOR)
    assert torch.allclose(scores(policy, obs)[0], 2 * model(obs).tanh(), atol=1e-6)


def test_the_nature_cnn_of_sb3_sees_images(tmp_path):
    cnn = nn.Sequential(
        nn.Conv2d(2, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3)
    )
    cnn = cnn.requires_grad_(False)
    linear = net(64, 16)[0]  # of an image of 36 pixels a side one is left
    last = net(16, 2)[0]
    names = {f"features_extractor.cnn.{number}": cnn[number] for number in (0, 2, 4)}
    names |= {"features_extractor.linear.0": linear, "action_net": last}
    save_sb3(tmp_path / "a.zip", names)
    spec = Spec(spaces.Box(0, 255, (2, 36, 36), np.uint8), spaces.Discrete(2), 500, stack=2)
    file = VictimFile("sb3", tmp_path / "a.zip")
    network = sb3.load(file, None, spec)
    obs = torch.randint(0, 256, (3, 2, 36, 36), generator=GENERATOR)
    expected = last(linear(cnn(obs / 255).relu().flatten(1)).relu())
    found = network.scores(obs.to(torch.uint8).unsqueeze(0), {}, "action")[0]
    assert torch.allclose(found, expected, atol=1e-5)


def test_several_files_are_seeds_side_by_side(opened):
    models = [net(4, 8, 2), net(4, 8, 2), net(4, 6, 2)]
    for number, model in enumerate(models):
        save_ppo(f"{number}.zip", model)
    stacked = opened("sb3:*.zip", "cartpole", activation="tanh")
    assert isinstance(stacked.policy, Rows) and stacked.seeds == [0, 1, 2]
    alike = opened(["sb3:0.zip", "sb3:1.zip"], "cartpole")
    assert isinstance(alike.policy, Network)
    for policy in (alike.policy, stacked.policy):
        found = scores(policy, OBS)
        for row, model in zip(found, models, strict=False):
            assert torch.allclose(row, model(OBS), atol=1e-6)
    # Rows are cut and reordered; the models stay as they are.
    cut = scores(take(stacked.policy, torch.tensor([2, 0])), OBS)
    assert torch.allclose(cut[0], models[2](OBS), atol=1e-6)
    assert torch.allclose(cut[1], models[0](OBS), atol=1e-6)


def test_statistics_of_vecnormalize_come_from_an_npz_file(opened, rlx):
    model = net(4, 8, 2)
    Path("m/CartPole-v1").mkdir(parents=True)
    save_ppo("m/best.zip", model)
    Path("m/CartPole-v1/vecnormalize.pkl").write_bytes(base64.b64decode(BOMB))
    refused = rlx("evaluate", "victim=sb3:m/best.zip", "env=cartpole")
    assert refused.code == 2 and "never loaded" in refused.err
    assert "numpy.savez('" in refused.err and not Path("unpickled").exists()
    raw = opened("sb3:m/best.zip", "cartpole", vecnormalize=False)
    assert torch.allclose(scores(raw.policy, OBS)[0], model(OBS), atol=1e-6)
    mean = np.array([0.1, 0.2, 0.3, 0.4])
    var = np.array([1.0, 0.01, 4.0, 0.25])
    np.savez("m/CartPole-v1/vecnormalize.npz", obs_mean=mean, obs_var=var, clip_obs=2.0)
    normal = (OBS.numpy() - mean) / np.sqrt(var + 1e-8)
    expected = model(torch.from_numpy(normal.clip(-2, 2)).float())
    for keys in ({}, {"vecnormalize": "m/CartPole-v1/vecnormalize.npz"}):
        found = opened("sb3:m", "cartpole", **keys)
        assert torch.allclose(scores(found.policy, OBS)[0], expected, atol=1e-5)


def test_frames_are_normalised_one_by_one_and_zoo_files_are_read(opened, rlx):
    save_ppo("a.zip", net(8, 8, 2))
    Path("config.yml").write_text(
        "!!python/object/apply:collections.OrderedDict\n"
        "- - - frame_stack\n    - 2\n  - - normalize\n    - true\n"
    )
    np.savez("vec_normalize.npz", obs_mean=np.ones(4), obs_var=np.full(4, 4.0))
    found = opened("sb3:a.zip", "cartpole", "+env.stack=2")
    steps = list(found.policy.steps)
    obs = torch.arange(8.0).view(1, 1, 8)
    assert torch.allclose(steps[1](steps[0](obs)), (obs - 1) / 2)
    wrong = rlx("evaluate", "victim=sb3:a.zip", "env=cartpole", "+env.stack=4")
    assert wrong.code == 2 and "sees 8 numbers" in wrong.err
    Path("config.yml").write_text(Path("config.yml").read_text().replace("2", "4"))
    wrong = rlx("evaluate", "victim=sb3:a.zip", "env=cartpole", "+env.stack=2")
    assert wrong.code == 2 and "use env.stack=4" in wrong.err


class Sum(nn.Module):
    """A network of two branches, which is no chain."""

    def __init__(self):
        super().__init__()
        self.first = net(4, 8, 2)
        self.second = net(4, 8, 2, activation=nn.ReLU)

    def forward(self, obs):
        return self.first(obs) + self.second(obs)


def save_jit(file, model):
    torch.jit.trace(model, OBS[:2]).save(file)


def save_onnx(file, model):
    pytest.importorskip("onnxscript")
    batch = torch.export.Dim("batch")
    torch.onnx.export(model, (OBS[:2],), file, dynamic_shapes=({0: batch},), verbose=False)


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_plain_networks_of_other_formats_are_stacked(kind, opened):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    save = {"onnx": save_onnx, "torchscript": save_jit}[kind]
    models = [net(4, 8, 8, 2), net(4, 8, 8, 2)]
    for number, model in enumerate(models):
        save(f"{number}.file", model)
    policy = opened([f"{kind}:0.file", f"{kind}:1.file"], "cartpole").policy
    assert isinstance(policy, Network)
    for row, model in zip(scores(policy, OBS), models, strict=True):
        assert torch.allclose(row, model(OBS), atol=1e-5)


def test_other_graphs_of_torchscript_answer_with_gradients(opened):
    model = Sum().requires_grad_(False)
    save_jit("a.pt", model)
    policy = opened("torchscript:a.pt", "cartpole").policy
    obs = OBS.clone().requires_grad_()
    found = scores(policy, obs)[0]
    (slope,) = torch.autograd.grad(found[:, 0].sum(), obs)
    again = OBS.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(again)[:, 0].sum(), again)
    assert isinstance(policy, Rows) and torch.allclose(found, model(OBS), atol=1e-6)
    assert torch.allclose(slope, expected, atol=1e-6)


def test_other_graphs_of_onnx_are_asked_and_converted_where_they_can_be(opened):
    pytest.importorskip("onnxruntime")
    model = Sum().requires_grad_(False)
    save_onnx("a.onnx", model)
    policy = opened("onnx:a.onnx", "cartpole").policy
    assert torch.allclose(scores(policy, OBS)[0], model(OBS), atol=1e-5)
    obs = OBS.clone().requires_grad_()
    try:
        import onnx2torch  # noqa: F401
    except ImportError:
        assert not scores(policy, obs).requires_grad
    else:
        (slope,) = torch.autograd.grad(scores(policy, obs)[0, :, 0].sum(), obs)
        (expected,) = torch.autograd.grad(model(obs)[:, 0].sum(), obs)
        assert torch.allclose(slope, expected, atol=1e-5)


FUNCTIONS = """
import gymnasium
import numpy as np

def act(obs):
    assert obs.dtype == np.float32
    return (obs[:, 2] + obs[:, 3] > 0).astype(int)

def scores(obs):
    push = obs[:, 2] + obs[:, 3]
    return np.stack([-push, push], 1)

def three(obs):
    return np.zeros((len(obs), 3))

def broken(obs):
    raise KeyError("no key")

def torn(obs):
    raise ValueError("two\\nlines")

def lost(obs):
    return np.full((len(obs), 2), np.nan)
"""


def test_functions_of_a_file_are_black_boxes(opened):
    Path("mine.py").write_text(FUNCTIONS)
    push = OBS[:, 2] + OBS[:, 3]
    by_action = scores(opened("mine.py:act", "cartpole").policy, OBS)[0]
    assert (by_action.argmax(1) == (push > 0)).all() and (by_action.sum(1) == 1).all()
    by_score = scores(opened("mine.py:scores", "cartpole").policy, OBS)[0]
    assert torch.allclose(by_score, torch.stack([-push, push], 1))


def test_a_black_box_is_attacked_by_what_needs_no_gradient(rlx):
    Path("mine.py").write_text(FUNCTIONS)
    keys = ("victim=mine.py:scores", "env=cartpole", "env.max_episode_steps=60", "scale=[1,1,1,1]")
    small = ("eps=[0,0.3]", "episodes=3", "effort.rounds=1", "effort.updates=5")
    result = rlx("attack", *keys, *small)
    assert result.code == 0, result
    assert "trying   noise, corners, minq, towards 0, towards 1, random_search, square, nes" in (
        result.out
    )
    cells = {cell["eps"]: cell["return"]["iqm"] for cell in result.summary["cells"]}
    assert cells[0] == 60 and cells[0.3] < 30
    meta = json.loads((result.run / "meta.json").read_text())
    name = f"{Path('mine.py').absolute()}:scores"
    assert meta["victims"] == {name: sha256(Path("mine.py"))}
    assert result.run.parent.name == "function-cartpole"
    report = rlx("report", result.run, rlx("attack", *keys, *small, "attack=square").run)
    assert report.code == 0, report
    refused = rlx("attack", *keys, "attack=pgd", "eps=0.1")
    assert refused.code == 2 and "have no gradients; use attack=square" in refused.err


def test_victims_are_certified_and_learnt_against(rlx):
    save_ppo("a.zip", net(4, 8, 8, 2))
    keys = ("victim=sb3:a.zip", "env=cartpole", "env.max_episode_steps=30", "scale=[1,1,1,1]")
    certified = rlx("certify", *keys, "eps=[0,0.01]", "episodes=2")
    assert certified.code == 0, certified
    shares = certified.summary["heads"]["action"]
    assert shares["certified"][0]["iqm"] == 1 and shares["undecided"] == [0, 0]
    learned = rlx(
        "attack",
        *keys,
        "attack=learned",
        "eps=[0,0.3]",
        "episodes=3",
        "effort.adversary_steps=400",
    )
    assert learned.code == 0, learned
    assert list(Path("outputs/adversaries").glob("*/train/dqn-attacked/*"))
    Path("mine.py").write_text(FUNCTIONS)
    refused = rlx("certify", "victim=mine.py:act", "env=cartpole", "scale=std")
    assert refused.code == 2 and "fully connected layers with ReLU or tanh" in refused.err


WRONG = [
    ("victim=sb3:text.zip", "is no model that SB3 saved"),
    ("victim=sb3:empty.zip", "is no model that SB3 saved"),
    ("victim=sb3:pickled.zip", "is no model that SB3 saved"),
    ("victim=sb3:lstm.zip", "a policy of another kind"),
    ("victim=sb3:deep.zip", "its actor is no plain MLP"),
    ("victim=sb3:six.zip", "sees 6 numbers; this env's observations are Box("),
    ("victim=sb3:three.zip", "has 3 discrete actions; this env's actions are Discrete(2)"),
    ("victim=sb3:gone.zip", "victim=sb3:gone.zip: no such file. Did you mean"),
    ("victim=sb3:xyzzy", "victim=sb3:xyzzy: no such file."),
    ("victim=.", "victim=.: expected sb3:FILE.zip, torchscript:FILE.pt, onnx:FILE.onnx or"),
    ("victim=onnx:.", "victim=onnx:.: is a folder; expected a file."),
    ("victim=sb3:.", "victim=sb3:.: a folder with one zip was expected; it has"),
    ("victim=sb3:*.nothing", "matches no file"),
    ("victim=sb4:a.zip", "victim=sb4: unknown. Did you mean 'sb3'?"),
    ("victim=six.zip", "FILE.py:FUNCTION. Did you mean 'victim=sb3:six.zip'?"),
    ("victim=torchscript:text.zip", "is no model of torch.jit.save"),
    ("victim=mine.py:nobody", "no such function. Choose from"),
    ("victim=mine.py:three", "returned float64 [2, 3] for these observations; expected scores"),
    ("victim=mine.py:broken", "raised KeyError: 'no key'"),
    ("victim=mine.py:torn", "raised ValueError: two lines"),
    ("victim=mine.py:lost", "returned NaN"),
    ("victim=text.py:act", "cannot be imported (SyntaxError"),
    ("victim=[mine.py:act,sb3:good.zip]", "files of one kind at a time"),
    ("victim=sb3:good.zip activation=reluu", "Did you mean 'relu'?"),
    ("victim=sb3:good.zip vecnormalize=text.zip", "expected an npz file of obs_mean"),
    ("victim=sb3:good.zip vecnormalize=[a,b]", "2 files for 1 victims; expected one for all"),
    ("victim=sb3:good.zip vecnormalize=gone.npz", "vecnormalize=gone.npz: no such file"),
    ("victim=sb3:good.zip checkpoint=3", "a victim's file has no checkpoints"),
    ("victim=sb3:good.zip seeds=[3]", "the 1 victims are 0 to 0"),
    ("victim=sb3:good.zip run=outputs", "give a run or a victim, not both"),
    ("victim=mine.py:act activation=relu", "are for victim=sb3:FILE.zip"),
    ("activation=relu", "the run's own; it goes with victim="),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=lambda text: text[:40])
def test_wrong_victims_are_refused_in_one_line(words, message, rlx, tmp_path):
    save_ppo("good.zip", net(4, 8, 2))
    save_ppo("six.zip", net(6, 8, 2))
    save_ppo("three.zip", net(4, 8, 3))
    save_sb3("lstm.zip", {"lstm_actor": nn.LSTM(4, 8), "action_net": nn.Linear(8, 2)})
    odd = {
        "mlp_extractor.policy_net.0": nn.Linear(4, 8),
        "mlp_extractor.policy_net.1": nn.LayerNorm(8),
    }
    save_sb3("deep.zip", odd | {"action_net": nn.Linear(8, 2)})
    for name in ("text.zip", "text.py"):
        Path(name).write_text("no such thing")
    with zipfile.ZipFile("empty.zip", "w") as archive:
        archive.writestr("data", "{}")
    with zipfile.ZipFile("pickled.zip", "w") as archive:
        archive.writestr("data", "{}")
        archive.writestr("policy.pth", base64.b64decode(BOMB))
    Path("mine.py").write_text(FUNCTIONS)
    files = set(tmp_path.iterdir())
    result = rlx("evaluate", *words.split(), "env=cartpole")
    assert result.code == 2 and message in result.err, result.err
    lines = [line for line in result.err.splitlines() if line]
    assert len(lines) == 1 and {path.name for path in set(tmp_path.iterdir()) - files} <= {
        "__pycache__"
    }


@pytest.mark.parametrize("name", ["pö.zip", "model (1).zip", "a,b.zip", "it's.zip"])
def test_a_victims_file_may_have_any_name(name, rlx):
    save_ppo(name, net(4, 8, 2))
    result = rlx("evaluate", f"victim=sb3:{name}", "env=cartpole", "episodes=1")
    assert result.code == 0, result
    assert result.summary["run"][0].endswith(name)


def test_a_victim_needs_an_env(rlx):
    save_ppo("good.zip", net(4, 8, 2))
    result = rlx("attack", "victim=sb3:good.zip")
    assert result.code == 2 and "env: missing; name the env" in result.err


def test_python_files_of_somebody_elses_run_are_named_as_imports():
    config = {"victim": ["/there/mine.py:act", "sb3:/there/a.zip"], "env": {"id": "CartPole-v1"}}
    assert list(trust.imports(config)) == ["/there/mine.py:act"]
    assert list(trust.imports({"env": {"victims": config}})) == ["/there/mine.py:act"]


# Attacks without gradients.


def linear_policy(weight):
    """Scores [S, B, 2] that prefer choice 1 where `weight` · obs is positive."""

    def function(obs):
        push = (obs * weight).sum(-1)
        return torch.stack([-push, push], -1)

    return Scores(function)


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda count: torch.rand(1, 200, count, generator=generator)


BLIND = {
    "random_search": RandomSearch("margin", None, 64),
    "square": Square("margin", None, 64, 0.8),
    "nes": NES("margin", None, 4, 0.5, 16, 0.5),
}


@pytest.mark.parametrize("name", BLIND)
def test_attacks_without_gradients_find_what_a_gradient_finds(name):
    weight = torch.tensor([1.0, -2.0, 0.5, 3.0])
    obs = torch.randn(1, 200, 4, generator=torch.Generator().manual_seed(1))
    budget = Budget(
        torch.full_like(obs, 0.3), torch.full((4,), -math.inf), torch.full((4,), math.inf)
    )
    policy = linear_policy(weight)
    with torch.no_grad():
        shown = BLIND[name].perturb(policy, obs, budget, drawn(0))
    assert ((shown - obs).abs() <= 0.3 + 1e-6).all()
    flipped = policy.best(shown) != policy.best(obs)
    # A corner moves the product by 0.3 · Σ|w|, and no observation in the box by more.
    movable = (obs * weight).sum(-1).abs() < 0.3 * weight.abs().sum()
    assert not (flipped & ~movable).any() and 0.3 < movable.float().mean() < 0.95
    assert float(flipped.sum() / movable.sum()) > 0.95


def test_a_square_of_an_image_is_moved_at_once():
    obs = torch.full((1, 200, 1, 20, 20), 100.0)
    budget = Budget(torch.full_like(obs, 8), torch.zeros(1, 20, 20), torch.full((1, 20, 20), 255.0))

    def function(images):
        push = (images - 104).mean((-3, -2, -1))
        return torch.stack([-push, push], -1)

    shown = Square("margin", None, 200, 0.5).perturb(Scores(function), obs, budget, drawn(0))
    changed = (shown - obs).abs()
    assert (changed == 8).all()  # corners of the box alone
    # One image in a hundred has such a mean by chance.
    assert float(((shown - obs).mean((-3, -2, -1)) > 4).float().mean()) > 0.7


# Other tools.


def cartpole_victim(opened):
    model = net(4, 16, 16, 2)
    save_ppo("a.zip", model)
    return model, opened("sb3:a.zip", "cartpole").policy


def test_attacks_are_those_of_foolbox(opened):
    foolbox = pytest.importorskip("foolbox")
    model, policy = cartpole_victim(opened)
    obs = torch.randn(200, 4, generator=torch.Generator().manual_seed(2))
    labels = model(obs).argmax(1)
    theirs = foolbox.PyTorchModel(model, bounds=(-100, 100), device="cpu")
    own = Scores(lambda x: policy.scores(x, {}, "action"))
    eps = 0.1
    unbounded = torch.full((4,), math.inf)
    budget = Budget(torch.full((1, 200, 4), eps), -unbounded, unbounded)
    fgsm = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    _, moved, _ = fgsm(theirs, obs, labels, epsilons=eps)
    shown = FGSM("ce", None).perturb(own, obs.unsqueeze(0), budget, drawn(0))[0]
    assert torch.allclose(shown, moved, atol=1e-5)
    pgd = foolbox.attacks.LinfPGD(rel_stepsize=0.25, steps=10, random_start=False)
    _, _, success = pgd(theirs, obs, labels, epsilons=eps)
    shown = PGD("ce", None, 10, 0.25, 1, False).perturb(own, obs.unsqueeze(0), budget, drawn(0))[0]
    flipped = model(shown).argmax(1) != labels
    # It ends where theirs does, but keeps a flip that the last step undoes.
    assert (flipped >= success).all() and 0 < int(success.sum()) < 200
    assert int(flipped.sum()) - int(success.sum()) <= 2


@pytest.mark.parametrize("algorithm", ["PPO", "A2C", "DQN", "SAC", "TD3"])
def test_real_models_of_sb3_decide_alike(algorithm, opened):
    library = pytest.importorskip("stable_baselines3")
    ours, theirs = ("cartpole", "CartPole-v1")
    if algorithm in ("SAC", "TD3"):
        ours, theirs = ("pendulum", "Pendulum-v1")
    model = getattr(library, algorithm)("MlpPolicy", theirs, seed=0, device="cpu")
    model.save("a.zip")
    policy = opened("sb3:a.zip", ours).policy
    shape = model.observation_space.shape
    obs = torch.randn(500, *shape, generator=torch.Generator().manual_seed(3))
    expected, _ = model.predict(obs.numpy(), deterministic=True)
    action, _ = policy.act(obs.unsqueeze(0), torch.ones(1, 500, dtype=torch.bool), {})
    assert np.allclose(action[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["PPO", "DQN"])
def test_real_models_of_sb3_see_images_alike(algorithm, tmp_path):
    library = pytest.importorskip("stable_baselines3")

    class Pictures(gymnasium.Env):
        observation_space = spaces.Box(0, 255, (40, 40, 3), np.uint8)
        action_space = spaces.Discrete(4)

    keys = {"buffer_size": 1} if algorithm == "DQN" else {}
    kind = getattr(library, algorithm)
    model = kind("CnnPolicy", Pictures(), seed=0, device="cpu", **keys)
    model.save(tmp_path / "a.zip")
    spec = Spec(spaces.Box(0, 255, (3, 40, 40), np.uint8), spaces.Discrete(4), 500)
    network = sb3.load(VictimFile("sb3", tmp_path / "a.zip"), None, spec)
    obs = torch.randint(0, 256, (20, 40, 40, 3), generator=GENERATOR, dtype=torch.uint8)
    expected, _ = model.predict(obs.numpy(), deterministic=True)
    images = obs.movedim(-1, 1).unsqueeze(0)
    action, _ = network.act(images, torch.ones(1, 20, dtype=torch.bool), {})
    assert (action[0].numpy() == expected).all()


def test_real_frames_of_sb3_are_normalised_and_stacked_alike(opened):
    pytest.importorskip("stable_baselines3")
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

    normal = VecNormalize(DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]))
    stacked = VecFrameStack(normal, 2)
    model = PPO("MlpPolicy", stacked, n_steps=64, batch_size=64, seed=0, device="cpu").learn(128)
    model.save("a.zip")
    statistics = {"obs_mean": normal.obs_rms.mean, "obs_var": normal.obs_rms.var}
    np.savez("a.npz", **statistics, epsilon=normal.epsilon, clip_obs=normal.clip_obs)
    policy = opened("sb3:a.zip", "cartpole", "+env.stack=2", vecnormalize="a.npz").policy
    frames = OBS[:40].view(20, 2, 4)
    shown = np.stack([normal.normalize_obs(frame) for frame in frames.numpy()]).reshape(20, 8)
    distribution = model.policy.get_distribution(torch.from_numpy(shown).float()).distribution
    found = scores(policy, frames.flatten(1))[0].log_softmax(-1)
    assert torch.allclose(found, distribution.logits, atol=1e-5)


def test_what_rlx_exports_is_a_plain_network(rlx, tiny_runs):
    """It has gradients and bounds: what is certified of the file is what is of the run's seed."""
    pytest.importorskip("onnxruntime")
    run = tiny_runs / "train" / "dqn-cartpole"
    assert rlx("export", run, "seed.onnx").code == 0
    words = ("scale=[1,1,0.1,1]", "eps=[0,0.01]", "episodes=2")
    of_file = rlx("certify", "victim=onnx:seed.onnx", "env=cartpole", *words)
    of_run = rlx("certify", run, "seeds=[0]", *words)
    assert of_file.code == 0 == of_run.code, of_file
    assert of_file.summary["certified"]["iqm"] == pytest.approx(of_run.summary["certified"]["iqm"])
