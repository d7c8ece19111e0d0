"""env=attacked and attack=learned: an adversary sees, forces and is paid what it should be."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, compose
from gymnasium import spaces
from safetensors.torch import load_file

from rlx import cli
from rlx.agent import Scores, greedy
from rlx.api import _word
from rlx.attacks.learned import Learned
from rlx.attacks.pgd import PGD
from rlx.checks.envs import env_checks
from rlx.config import build, plain
from rlx.errors import ConfigError
from rlx.evaluation import REPORT, evaluate
from rlx.experiment import make_env
from rlx.policies import open_runs
from rlx.robustness import levers
from rlx.robustness.sweep import Game, sweep
from rlx.runs.finding import find
from rlx.threat import Boxes, Mode

CPU = torch.device("cpu")
SCALE = [0.5, 0.5, 0.1, 0.5]
LEARN = ("agent.learning_starts=100", "agent.hidden=[16]", "agent.replay_ratio=0.25")


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    """Two DQN that have learnt a little, so that what they see matters, as a run directory."""
    root = tmp_path_factory.mktemp("victims")
    keys = ["agent=dqn", "env=cartpole", "seeds=2", *TINY, "steps=4000", "eval_every=1000"]
    learn = ["agent.hidden=[32,32]", "agent.learning_starts=100", "agent.epsilon_steps=2000"]
    assert cli.run(["train", *keys, *learn, f"outputs={root}"]) == 0
    return find(str(root), "").path


@pytest.fixture(scope="module")
def acrobot(tiny_runs):
    """Two hierarchical DQN that have hardly learnt, as a run directory."""
    return find(str(tiny_runs / "train/hdqn-acrobot"), "").path


def node(run: Path, **keys) -> dict:
    """The config group env of an adversary of the policies of `run`."""
    composed = plain(compose("train", "env=attacked").env)
    given = {"run": str(run), "scale": SCALE, "unit": 1.0}
    return composed | given | keys


def attacked(run: Path, num_envs: int, **keys):
    return make_env(node(run, **keys), num_envs, "cpu")


def parts(env, obs):
    """An observation apart: the victim's, the clean choice, what can be forced, the radius."""
    size = obs.shape[1] - 1 - env.lever.choices[0] - sum(env.lever.choices)
    sizes = [size, sum(env.lever.choices), env.lever.choices[0], 1]
    seen, own, mask, radius = obs.split(sizes, 1)
    return seen, own, mask.bool(), radius.squeeze(1)


def clean_action(env, obs):
    """The action that leaves the victims alone."""
    _, own, _, _ = parts(env, obs)
    picks = [choice.argmax(1) for choice in own.split(list(env.lever.choices), 1)]
    action = torch.zeros_like(picks[0])
    for choices, pick in zip(env.lever.choices, picks, strict=True):
        action = action * choices + pick
    return action


@pytest.mark.parametrize("eps", [0.0, 0.4])
@pytest.mark.parametrize("fixture", ["cartpole", "acrobot"])
def test_leaving_it_alone_is_clean_play(request, fixture, eps):
    run = request.getfixturevalue(fixture)
    scale = SCALE if fixture == "cartpole" else "bounds"
    opened = open_runs([find(str(run), "")], "best", CPU)
    env = attacked(run, 2 * 5, eps=[eps], scale=scale)
    plain = opened.make_env(2 * 5)
    own_obs, _ = env.reset(seed=3)
    obs, _ = plain.reset(seed=3)
    first = torch.ones(2, 5, dtype=torch.bool)
    carry = opened.policy.initial_carry(5)
    for _ in range(110):
        assert torch.equal(parts(env, own_obs)[0], obs)
        action, carry = opened.policy.act(obs.unflatten(0, (2, 5)), first, carry, greedy)
        obs, reward, terminated, truncated, _ = plain.step(action.flatten(0, 1))
        own_obs, own_reward, *flags, _ = env.step(clean_action(env, own_obs))
        assert torch.equal(own_reward, -reward)
        assert torch.equal(flags[0], terminated) and torch.equal(flags[1], truncated)
        first = (terminated | truncated).unflatten(0, (2, 5))
    assert all(int(flips.sum()) == 0 for flips in env.flips().values())
    assert all(int(count.min()) > 0 for count in env.decisions().values())


def test_at_radius_0_nothing_can_be_forced(cartpole):
    env = attacked(cartpole, 4, eps=[0])
    obs, _ = env.reset(seed=0)
    _, own, mask, _ = parts(env, obs)
    assert torch.equal(own.bool(), mask)
    assert torch.equal(env.rules.legal(obs), mask)


def test_what_is_forced_is_done_within_the_box(cartpole):
    env = attacked(cartpole, 2 * 6, eps=[0.8], steps=3)
    twin = open_runs([find(str(cartpole), "")], "best", CPU).make_env(2 * 6)
    obs, _ = env.reset(seed=5)
    twin.reset(seed=5)
    draws = torch.randint(0, 2, (40, 12), generator=torch.Generator().manual_seed(0))
    forced = 0
    for pick in draws:
        seen, own, mask, _ = parts(env, obs)
        moved = env.state_dict()["forcing"] - seen.unsqueeze(1)
        assert (moved.abs() <= 0.8 * torch.tensor(SCALE) + 1e-6).all()
        can = mask.gather(1, pick.unsqueeze(1)).squeeze(1)
        done = torch.where(can, pick, own.argmax(1))
        forced += int((done != own.argmax(1)).sum())
        obs, *_ = env.step(pick)
        expected, *_ = twin.step(done)
        assert torch.equal(parts(env, obs)[0], expected)
    assert forced > 20
    assert 0 < int(env.flips()["action"].sum()) <= forced  # counted in first episodes only


def test_each_member_sees_its_own_victim_and_radius(cartpole):
    env = attacked(cartpole, 2 * 2 * 2 * 3, eps=[0.1, 0.4], restarts=2, seeds=[1, 0])
    opened = open_runs([find(str(cartpole), "")], "best", CPU, [1, 0])
    obs, _ = env.reset(seed=[7] * 24)
    seen, own, mask, radius = parts(env, obs)
    assert radius.tolist() == ([0.25] * 3 + [1.0] * 3) * 4
    rows = seen.unflatten(0, (2, 12))
    first = torch.ones(2, 12, dtype=torch.bool)
    action, _ = opened.policy.act(rows, first, opened.policy.initial_carry(12))
    assert torch.equal(own.argmax(1), action.flatten())
    wide = mask.unflatten(0, (4, 2, 3))
    assert (wide[:, 1] >= wide[:, 0]).all()


@pytest.mark.parametrize("index", [[0, 2, 6, 8], [5, 0, 1, 11, 7]], ids=["even", "any"])
@pytest.mark.rounding
def test_copies_that_go_on_alone_go_on_as_they_would_have(acrobot, index):
    keys = {"eps": [0.02, 0.1], "mode": "both", "scale": "bounds", "samples": 2}
    whole = attacked(acrobot, 12, **keys)
    some = attacked(acrobot, 12, **keys)
    rows = torch.tensor(index)
    whole.reset(seed=1)
    some.reset(seed=1)
    actions = torch.randint(0, 9, (30, 12), generator=torch.Generator().manual_seed(2))
    for step, action in enumerate(actions):
        if step == 10:
            some.keep(rows)
        obs, reward, *_ = whole.step(action)
        own_obs, own_reward, *_ = some.step(action[rows] if step >= 10 else action)
        if step >= 10:
            torch.testing.assert_close(own_obs, obs[rows], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(own_reward, reward[rows])
    for head, flips in whole.flips().items():
        assert torch.equal(some.flips()[head][rows], flips[rows])


def test_the_checks_of_envs(cartpole):
    assert len(list(env_checks(node(cartpole, eps=[0.1, 0.4], samples=1)))) >= 5


def test_continuous_actions_are_pushed(rlx, tmp_path):
    tiny = (*TINY, "agent.rollout_steps=32", "agent.hidden=[16]", "seeds=2")
    run = rlx("train", "agent=ppo", "env=pendulum", *tiny).run
    outcomes = []
    for eps, way in ((0, 1), (0.5, -1), (0.5, 1)):
        env = attacked(run, 8, eps=[eps], scale="bounds", steps=2)
        env.reset(seed=0)
        obs, *_ = env.step(torch.full((8, 1), float(way)))
        outcomes.append(obs[:, 2])  # the speed, which the torque moves
    left_alone, pushed_down, pushed_up = outcomes
    assert (pushed_down <= left_alone).all() and (left_alone <= pushed_up).all()
    assert (pushed_down < pushed_up).all()
    assert env.single_action_space == spaces.Box(-1, 1, (1,))
    assert obs.shape == (8, 3 + 1 + 1)  # what is seen, the torque, the radius


def two_numbers(obs):
    """An action of two numbers, of which each component of `obs` [S, B, 3] moves one or both."""
    weights = torch.tensor([[1.0, 0.0], [-2.0, 0.5], [0.0, 3.0]])
    return obs @ weights


@pytest.mark.parametrize("direction", [[1.0, 0.0], [-1.0, 0.0], [0.2, -0.9], [0.7, 0.7]])
def test_a_push_leads_to_the_corner_that_is_furthest_and_stays_in_the_box(direction):
    """Of a linear action the furthest is known: the corner that the weights point to."""
    bound = torch.full((2,), 100.0)
    scores = Scores(two_numbers, (-bound, bound))
    space = spaces.Box(np.array([-1, -1, -9], np.float32), np.array([1, 1, 9], np.float32))
    obs = torch.tensor([[[0.0, 0.5, -3.0], [0.95, -0.2, 1.0]]])
    budget = Boxes.of(space, torch.tensor([0.1, 0.2, 0.5])).around(obs, torch.ones(1, 2))
    wanted = torch.tensor(direction).expand(1, 2, 2)
    lever = levers.Pushes(spaces.Box(-100, 100, (2,), np.float32), steps=2, device=obs.device)
    shown = lever.shown(0, obs, scores, wanted, None, budget, lambda count: None)
    corners = [
        budget.project(obs + budget.radius * torch.tensor(signs), obs)
        for signs in itertools.product([-1.0, 1.0], repeat=3)
    ]
    reached = (two_numbers(shown) * wanted).sum(-1)
    furthest = torch.stack([(two_numbers(corner) * wanted).sum(-1) for corner in corners]).amax(0)
    torch.testing.assert_close(reached, furthest)
    assert ((shown - obs).abs() <= budget.radius + 1e-6).all() and (shown[..., 0] <= 1).all()
    look = lever.look(0, obs, scores, None, budget, None)
    torch.testing.assert_close(look.own, two_numbers(obs) / 100)


def test_each_number_of_an_action_counts_by_its_range():
    """A push towards (1, 1) favours the number that is small in its units but of small range."""
    space = spaces.Box(np.array([-1, -100]), np.array([1, 100]), dtype=float)
    lever = levers.Pushes(space, 1, torch.device("cpu"))
    scores = Scores(lambda obs: torch.cat([obs, -10 * obs], -1), (torch.tensor(-100.0),) * 2)
    obs = torch.zeros(1, 1, 1)
    budget = Boxes.of(spaces.Box(-1, 1, (1,)), torch.ones(1)).around(obs, torch.ones(1, 1))
    shown = lever.shown(0, obs, scores, torch.ones(1, 1, 2), None, budget, lambda count: None)
    assert shown.item() == 1


def test_the_unit_of_rewards_is_the_size_of_the_clean_return(cartpole):
    best = json.loads((cartpole / "checkpoints/best/state.json").read_text())["value"]
    env = attacked(cartpole, 2, eps=[0.1], unit=None)
    env.reset(seed=0)
    _, reward, *_ = env.step(torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(reward, torch.full((2,), -1 / np.mean(best)).float())


def test_a_training_resumes_as_if_it_had_never_stopped(rlx, cartpole):
    keys = ("agent=dqn", "env=attacked", f"env.run={cartpole}", f"env.scale={SCALE}")
    keys += ("env.eps=[0.1,0.4]", "seeds=4", "env.samples=1", *TINY, *LEARN)
    whole = rlx("train", *keys).run
    part = rlx("train", *keys, "steps=300").run
    resumed = rlx("resume", part, "steps=600")
    assert resumed.code == 0, resumed.err
    for name in ("000000600", "best"):
        one, other = (run / "checkpoints" / name / "agent.safetensors" for run in (whole, part))
        for key, tensor in load_file(one).items():
            assert torch.equal(tensor, load_file(other)[key]), key
    assert rlx("evaluate", whole, "episodes=4").code == 0
    config = json.loads(json.dumps((whole / "config.yaml").read_text()))
    assert str(cartpole.absolute()) in config


@pytest.mark.parametrize("per_radius", [False, True], ids=["all radii", "one radius"])
def test_some_seeds_of_a_training_meet_the_victims_they_have_learnt_against(
    rlx, cartpole, per_radius
):
    """Seed 3 of two victims × two restarts is the second adversary of the second victim."""
    keys = ("agent=dqn", "env=attacked", f"env.run={cartpole}", f"env.scale={SCALE}")
    seeds = 8 if per_radius else 4
    keys += ("env.eps=[0.1,0.4]", f"seeds={seeds}", "env.restarts=2", *TINY, *LEARN)
    result = rlx("train", *keys, "steps=200", "eval_episodes=2", "final_episodes=2")
    assert result.code == 0, result.err
    run = result.run
    evaluated = {}
    for some in (f"0:{seeds}", "[3,1]", "2"):
        result = rlx("evaluate", run, f"seeds={some}", "episodes=4")
        assert result.code == 0, result.err
        evaluated[some] = np.load(result.run / "returns.npz")["returns"]
    every = evaluated.pop(f"0:{seeds}")
    assert len(np.unique(every.mean(1))) > 1, "adversaries must differ for this to say anything"
    np.testing.assert_allclose(evaluated["[3,1]"], every[[3, 1]], rtol=1e-5)
    np.testing.assert_allclose(evaluated["2"], every[:2], rtol=1e-5)
    opened = open_runs([find(str(run), "")], "best", CPU, [3])
    env = opened.make_env(4)
    env.reset(seed=0)
    # Of 2 victims × 2 restarts × 2 radii.
    assert env.state_dict()["member"].tolist() == ([3] * 4 if per_radius else [6, 6, 7, 7])
    assert env.members.victim.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_adversaries_have_no_more_seeds_than_victims(rlx, cartpole):
    keys = ("agent=dqn", "env=attacked", f"env.run={cartpole}", f"env.scale={SCALE}")
    keys += ("env.eps=[0.1]", "seeds=2", *TINY, *LEARN, "steps=200")
    run = rlx("train", *keys).run
    result = rlx("resume", run, "seeds=4")
    assert result.code == 2 and "seeds: 4 for 2 victims × 1 restarts" in result.err
    rule = "stop={window: 1, solved: 1, give_up_from: 9, give_up_every: 1, give_up_below: 0}"
    result = rlx("train", *keys, "num_envs=1", f"{rule[:-1]}, episodes: 9}}")
    assert result.code == 2 and "stop: not with env=attacked" in result.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["env.members=[0]"], "env.members: is for evaluations"),
        (["env.members=[4]"], "env.members=[4]: expected some of 0 to 3"),
        (["env.mode=gaol"], "env.mode=gaol: unknown. Did you mean 'goal'?"),
        (["seeds=5"], "set seeds=2, whose adversaries serve all radii, or seeds=4"),
        (["seeds=2", "num_envs=3"], "3 cannot be shared out among the 2 radii"),
        (["env.scale=std"], "env.scale=std: expected bounds"),
        (["env.run=nowhere"], "run=nowhere: no such run directory"),
        (["env.workers=2"], "env.workers=2: expected 1"),
        (["env.seeds=[5]"], "seeds=[5]: [5] not in"),
        (["env.eps=[-1]"], "env.eps=[-1.0]: a radius cannot be negative"),
        (["env.most=1"], "env.most: unknown key"),
    ],
)
def test_errors_are_one_line(rlx, acrobot, words, expected):
    keys = ["agent=dqn", "env=attacked", f"env.run={acrobot}", "env.eps=[0.1,0.2]", "seeds=4"]
    result = rlx("train", *keys, *words)
    assert result.code == 2 and expected in result.err and result.err.count("\n") == 1


def test_too_many_combinations(acrobot, monkeypatch):
    monkeypatch.setattr(levers, "MOST_ACTIONS", 8)
    with pytest.raises(ConfigError, match="9 combinations of choices, 3 × 3; at most 8"):
        attacked(acrobot, 2, eps=[0.1], scale="bounds", mode="both")


def test_victims_that_cannot_be_attacked(rlx):
    tiny = (*TINY, "seeds=1", *LEARN)
    run = rlx("train", "agent=dqn", "env=chain", *tiny).run
    with pytest.raises(ConfigError, match="needs victims with continuous observations"):
        attacked(run, 1, eps=[0.1])
    run = rlx("train", "agent=dqn", "env=cartpole", "+env.stack=2", *tiny).run
    with pytest.raises(ConfigError, match="see 2 observations at once"):
        attacked(run, 1, eps=[0.1])


def game_of(run: Path, eps, scale=SCALE, episodes=5, max_num_envs=13) -> Game:
    found = find(str(run), "")
    opened = open_runs([found], "best", CPU)
    space = opened.spec.observation_space
    numbers = np.asarray(scale, dtype=float).reshape(space.shape)
    return Game(opened, eps, numbers, episodes, REPORT, max_num_envs, (), [found])


def learned(**keys) -> Learned:
    composed = compose("attack", "attack=learned").attack
    return build(Learned, plain(composed) | keys, "attack")


TINY_LEARNED = {
    "agent_keys": {"hidden": [16], "learning_starts": 100, "replay_ratio": 0.25},
    "adversary_steps": 400,
    "adversary_envs": 4,
    "restarts": 2,
    "selection_episodes": 2,
    "steps": 1,
    "samples": 0,
}


def test_trust_in_the_victims_reaches_their_adversaries(rlx, tmp_path, monkeypatch):
    """Victims of somebody else: refused, but with trust=true attacked, and played by a learner."""
    (tmp_path / "of_a_friend.py").write_text(
        "from rlx.agents.dqn import DQN\n\nclass Mine(DQN): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    tiny = ("agent=dqn", "env=cartpole", "seeds=2", *TINY, *LEARN)
    run = rlx("train", *tiny).run
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("rlx.agents.dqn.DQN", "of_a_friend.Mine"))
    keys = [f"attack.{key}={_word(value)}" for key, value in TINY_LEARNED.items()]
    attack = ("attack", run, "attack=learned", *keys, "scale=std", "eps=[0,0.1]", "episodes=2")
    refused = rlx(*attack)
    assert refused.code == 2 and "trust=true" in refused.err
    assert rlx(*attack, "trust=true").code == 0
    adversary = next(run.glob("adversaries/*/train/dqn-attacked/*"))
    monkeypatch.setattr("rlx.runs.run._trusted", set())  # as in another process
    refused = rlx("evaluate", adversary, "episodes=2")
    assert refused.code == 2 and "trust=true" in refused.err
    assert rlx("evaluate", adversary, "episodes=2", "trust=true").code == 0


@pytest.fixture
def own_cartpole(rlx):
    """Two DQN that have hardly learnt, in a run directory of this test's own."""
    return rlx("train", "agent=dqn", "env=cartpole", "seeds=2", *TINY, *LEARN).run


def test_adversaries_are_kept_and_found_again(own_cartpole, capsys):
    game = game_of(own_cartpole, [0, 0.1, 0.3])
    modes = {"action": Mode(("action",), shared=False)}
    played = learned(**TINY_LEARNED).play(game, modes)["action"]
    assert played.returns.shape == (2, 3, 5) == played.flips["action"].shape
    clean = evaluate(game.opened.policy, game.opened.make_env, 2, 5, REPORT, CPU)
    np.testing.assert_array_equal(played.returns[:, 0], clean.returns.numpy())
    assert not played.flips["action"][:, 0].any()
    np.testing.assert_array_equal(played.decisions["action"], played.lengths)
    printed = capsys.readouterr()
    assert "eps" not in printed.err
    (run,) = own_cartpole.glob("adversaries/*/train/dqn-attacked/*")
    lines = printed.out.splitlines()
    assert str(run) in lines[0] and "2 victims × 2 restarts" in lines[0]
    others = [line for line in lines[1:] if " of the " not in line]
    assert all(line.startswith("warning") for line in others), others

    again = learned(**TINY_LEARNED).play(game, modes)["action"]
    assert "trained before" in capsys.readouterr().out
    np.testing.assert_array_equal(again.returns, played.returns)
    runs = list(own_cartpole.glob("adversaries/*/train/dqn-attacked/*"))
    assert len(runs) == 1

    # As if the process had been killed behind the last checkpoint.
    meta = json.loads((runs[0] / "meta.json").read_text())
    (runs[0] / "meta.json").write_text(json.dumps(meta | {"status": "running"}))
    (runs[0] / "summary.json").unlink()
    resumed = learned(**TINY_LEARNED).play(game, modes)["action"]
    assert "trained before" not in capsys.readouterr().out
    np.testing.assert_array_equal(resumed.returns, played.returns)
    assert list(own_cartpole.glob("adversaries/*/train/dqn-attacked/*")) == runs


def test_any_agent_with_discrete_actions_can_be_the_adversary(own_cartpole):
    keys = {"agent": "ppo", "agent_keys": {"hidden": [16], "rollout_steps": 16, "minibatches": 2}}
    played = learned(**TINY_LEARNED | keys).play(
        game_of(own_cartpole, [0.3]), {"action": Mode(("action",), shared=False)}
    )
    assert played["action"].returns.shape == (2, 1, 5)


def test_a_larger_radius_may_use_what_was_learnt_at_a_smaller_one():
    from rlx.attacks.learned import _best

    returns = np.array([[[9.0, 3.0, 5.0], [8.0, 4.0, 6.0]]])  # one victim, two restarts
    restart, radius = _best(returns, [0.0, 0.1, 0.2])
    assert restart.tolist() == [[1, 0, 0]] and radius.tolist() == [[0, 1, 1]]


def test_games_that_no_adversary_can_learn(own_cartpole):
    modes = {"action": Mode(("action",), shared=True)}
    with pytest.raises(ConfigError, match="through one sensor"):
        learned().check(game_of(own_cartpole, [0.1]), modes)
    modes = {"action": Mode(("action",), shared=False)}
    with pytest.raises(ConfigError, match="needs a radius above 0"):
        learned().check(game_of(own_cartpole, [0]), modes)
    with pytest.raises(ConfigError, match="attack.agent=dqqn: unknown. Did you mean 'dqn'?"):
        learned(agent="dqqn")


@pytest.mark.slow
def test_an_adversary_learns_to_keep_the_pendulum_down(rlx):
    """It learns which way to push the torque; PGD moves it as far, wherever that leads."""
    run = rlx("train", "agent=ppo", "env=pendulum", "seeds=3").run
    game = game_of(run, [0, 0.1, 0.2], [1, 1, 8], episodes=50, max_num_envs=5000)
    modes = {"action": Mode(("action",), shared=False)}
    learner = learned(adversary_steps=150_000, adversary_envs=48)
    played = learner.play(game, modes)["action"]
    pgd = PGD("distance", None, steps=10, step_size=0.25, restarts=3, random_start=False)
    blind = sweep(game, pgd, modes)["action"]
    assert played.returns[:, 0].mean() > -260
    assert played.returns[:, 1].mean() < -700
    assert played.returns[:, 2].mean() < -1150
    assert (played.returns.mean(-1)[:, 1:] < blind.returns.mean(-1)[:, 1:]).all()


@pytest.mark.slow
def test_an_adversary_learns_to_tip_the_pole(rlx):
    run = rlx("train", "agent=dqn", "env=cartpole", "seeds=3").run
    game = game_of(run, [0, 0.2], [0.5, 0.5, 0.075, 0.44], episodes=50, max_num_envs=5000)
    modes = {"action": Mode(("action",), shared=False)}
    played = learned(adversary_steps=100_000, adversary_envs=32).play(game, modes)["action"]
    assert (played.returns[:, 0].mean(-1) > 400).all()
    assert (played.returns[:, 1].mean(-1) < 150).all()
