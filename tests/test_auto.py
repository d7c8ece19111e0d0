"""attack=auto is never above any of its attacks, and says which of them won where."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from conftest import compose
from test_planned import Narrow, clean, game, opened

from rlx.agent import Scores, greedy
from rlx.attacks.auto import Auto, worse_of_two, worst_of_each_episode, worst_of_each_seed
from rlx.attacks.minq import MinQ
from rlx.config import build
from rlx.evaluation import REPORT
from rlx.policies import open_runs
from rlx.robustness.reachable import reachable
from rlx.robustness.sweep import Game, Played, sweep
from rlx.runs.run import Run
from rlx.threat import Attack, Mode

MODE = {"action": Mode(("action",), shared=False)}


def played(returns, **changes):
    """Episodes of one head, [S, E, P]: lengths and flips tell whose they are, by the returns."""
    returns = np.array(returns, dtype=float)
    marks = (returns * 10).astype(int)
    one = Played(
        returns=returns,
        lengths=marks + 1,
        truncated=returns % 2 == 0,
        decisions={"action": marks + 2},
        flips={"action": marks + 3},
    )
    return replace(one, **changes)


def test_of_each_episode_the_lowest_counts_with_all_that_is_known_of_it():
    """One seed, radii 0 and 0.1, three episodes; of equal returns the attack named first."""
    first = played([[[5, 5, 5], [5, 3, 2]]])
    second = played([[[5, 5, 5], [4, 4, 2]]])
    worst = worst_of_each_episode({"first": first, "second": second}, [0.0, 0.1])
    assert worst.returns.tolist() == [[[5, 5, 5], [4, 3, 2]]]
    assert worst.attacks == ["first", "second"]
    assert worst.attack.tolist() == [[[0, 0, 0], [1, 0, 0]]]
    assert worst.lengths.tolist() == [[[51, 51, 51], [41, 31, 21]]]
    assert worst.truncated.tolist() == [[[False, False, False], [True, False, True]]]
    assert worst.decisions["action"].tolist() == [[[52, 52, 52], [42, 32, 22]]]
    assert worst.flips["action"].tolist() == [[[53, 53, 53], [43, 33, 23]]]
    assert worst.halved is None and worst.exact is None


def test_a_larger_radius_may_use_the_attack_of_any_smaller_one():
    """The radii are 0.2, 0 and 0.1: sorted, the episode's returns are 9, 4 (second) and 7."""
    first = played([[[7], [9], [8]]])
    second = played([[[8], [9], [4]]])
    worst = worst_of_each_episode({"first": first, "second": second}, [0.2, 0.0, 0.1])
    assert worst.returns.tolist() == [[[4], [9], [4]]]
    assert worst.attack.tolist() == [[[1], [0], [1]]]
    assert worst.lengths.tolist() == [[[41], [91], [41]]]


def test_what_half_the_effort_found_is_the_others_and_half_the_plan():
    single = played([[[9, 9], [6, 9], [9, 9]]])
    plan = played(
        [[[9, 9], [5, 7], [4, 7]]],
        halved=np.array([[[9.0, 9], [7, 8], [9, 7]]]),
        exact=np.array([[[True, True], [True, False], [False, False]]]),
    )
    worst = worst_of_each_episode({"single": single, "planned": plan}, [0.0, 0.1, 0.2])
    assert worst.returns.tolist() == [[[9, 9], [5, 7], [4, 7]]]
    assert worst.halved.tolist() == [[[9, 9], [6, 8], [6, 7]]], "it is monotone as well"
    assert (worst.halved >= worst.returns).all()
    assert np.array_equal(worst.exact, plan.exact)
    lower = played([[[9, 9], [3, 9], [9, 9]]])
    worst = worst_of_each_episode({"lower": lower, "planned": plan}, [0.0, 0.1, 0.2])
    assert worst.exact.tolist() == [[[True, True], [False, False], [False, False]]]


def test_of_two_modes_the_worse_counts_and_a_head_left_alone_has_no_flips():
    ones = np.ones((1, 1, 2), dtype=int)
    both = played(
        [[[5, 2]]],
        flips={"goal": ones, "action": 2 * ones},
        decisions={"goal": 3 * ones, "action": 4 * ones},
        attacks=["pgd", "planned"],
        attack=np.array([[[0, 1]]]),
        halved=np.array([[[6.0, 6.0]]]),
    )
    goal = played(
        [[[4, 4]]],
        flips={"goal": 7 * ones},
        decisions={"goal": 8 * ones, "action": 9 * ones},
        attacks=["minq", "planned"],
        attack=np.array([[[0, 0]]]),
        halved=np.array([[[5.0, 7.0]]]),
    )
    worse = worse_of_two(both, goal)
    assert worse.returns.tolist() == [[[4, 2]]]
    assert [worse.attacks[i] for i in worse.attack[0, 0]] == ["minq", "planned"]
    assert worse.flips["goal"].tolist() == [[[7, 1]]]
    assert worse.flips["action"].tolist() == [[[0, 2]]]
    assert worse.decisions["goal"].tolist() == [[[8, 3]]]
    assert worse.decisions["action"].tolist() == [[[9, 4]]], "it decides, unmoved"
    assert worse.halved.tolist() == [[[5, 6]]]
    assert worse.truncated.dtype == bool


def test_the_attack_of_a_seed_is_chosen_by_the_trial_and_not_by_the_report():
    """Two seeds; the trial at radius 0.1 says `second` of seed 0 and `first` of seed 1."""
    first = played([[[9, 9], [1, 1]], [[9, 9], [5, 5]]])
    second = played([[[8, 8], [6, 6]], [[8, 8], [2, 2]]])
    tried = {"first": np.array([[[4.0]], [[3.0]]]), "second": np.array([[[3.0]], [[4.0]]])}
    worst = worst_of_each_seed({"first": first, "second": second}, tried, [0.0, 0.1])
    assert worst.attack[:, 1].tolist() == [[1, 1], [0, 0]]
    assert worst.returns[:, 1].tolist() == [[6, 6], [5, 5]]
    assert worst.lengths[:, 1].tolist() == [[61, 61], [51, 51]]


def test_a_larger_radius_keeps_the_smaller_ones_attack_unless_the_trial_found_worse():
    """Radii 0.3, 0.1, 0.2; in the trial 0.1 has 5 (first), 0.2 only 6, and 0.3 has 4 (second)."""
    eps = [0.3, 0.1, 0.2]
    first = played([[[30], [10], [20]]])
    second = played([[[33], [11], [22]]])
    tried = {
        "first": np.array([[[9.0], [5.0], [6.0]]]),
        "second": np.array([[[4.0], [8.0], [7.0]]]),
    }
    worst = worst_of_each_seed({"first": first, "second": second}, tried, eps)
    assert worst.returns.tolist() == [[[33], [10], [10]]]
    assert worst.attack.tolist() == [[[1], [0], [0]]]


def auto(*overrides):
    config = compose("attack", "attack=auto", *overrides)
    return build(Auto, config.attack, "attack")


@pytest.mark.rounding
@pytest.mark.parametrize("agent, smooth", [("dqn", False), ("hdqn", False), ("ppo", True)])
def test_no_attack_alone_is_lower_in_any_episode_of_an_env_that_can_be_copied(agent, smooth):
    policies = opened(agent, smooth=smooth)
    study = game(policies, [0.0, 0.1, 0.3])
    threat = auto("effort.finalists=20", "effort.trial_episodes=2", "effort.rounds=1")
    modes = dict(threat.modes(policies.policy.heads))
    worst = threat.play(study, modes)
    fitting = threat._fitting(study, modes)
    for mode, found in worst.items():
        for name, attack in fitting.items():
            alone = sweep(study, attack, {mode: modes[mode]})[mode]
            assert (found.returns <= alone.returns + 1e-4).mean() > 0.98, name
        assert (found.returns <= clean(policies).returns.numpy()[:, None] + 1e-4).mean() > 0.9
        assert (np.diff(found.returns, axis=1) <= 0).all()
        assert (found.attack >= 0).all() and (found.attack < len(found.attacks)).all()
        assert "planned" in found.attacks and found.tried == list(fitting)
    if agent == "hdqn":
        assert (worst["both"].returns <= worst["goal"].returns).all()
        assert (worst["both"].returns <= worst["action"].returns).all()


class Wrong(Narrow):
    """Does what harms it, but where the place looks .02 off: to be disturbed helps."""

    def act(self, obs, first, carry, choose=greedy):
        def by_place(seen):
            off = seen[..., 0] - obs[..., 0]
            return torch.stack([0 * off, off.abs() - 0.02], -1)

        return choose("action", obs, Scores(by_place), torch.ones_like(first)), carry

    def scores(self, obs, carry, head):
        return torch.stack([0 * obs[..., 0], 0 * obs[..., 0] - 0.02], -1)


def test_where_all_attacks_help_the_policies_are_left_alone(monkeypatch):
    monkeypatch.setattr("rlx.attacks.auto.why_not", lambda game: "cannot be copied")
    policies = replace(opened(), policy=Wrong())
    study = game(policies, [0.1])
    harmless = clean(policies).returns.numpy()[:, None]
    threat = auto("effort.learns=false")
    threat = replace(threat, attacks={"noise": threat.attacks["noise"]})
    noise = sweep(study, threat.singles["noise"], MODE)["action"]
    assert (noise.returns.mean(-1) > harmless.mean(-1) + 0.1).all(), "noise helps"
    found = threat.play(study, MODE)["action"]
    assert np.allclose(found.returns, harmless)


def hide_gradients(policies):
    """Let the policies walk right, but left of 0.3 left: right of it their scores are flat."""
    for name, parameter in policies.policy.named_parameters():
        parameter.zero_()
        if name.endswith("layers.0.weight"):
            parameter[:, 0, 0] = -1
        elif name.endswith("layers.0.bias"):
            parameter[..., 0] = 0.3
        elif name.endswith("layers.1.weight"):
            parameter[:, 0, 0] = 1
        else:
            parameter[..., 1] = 1e-3


def test_what_noise_finds_counts_where_the_search_is_blind():
    """The plan follows all that one gradient step finds, and so knows not what there is to find."""
    policies = opened()
    hide_gradients(policies)
    study = game(policies, [0.0, 0.5], episodes=20)
    threat = auto("effort.finalists=20", "effort.width=4096")
    assert threat.planner.play(study, MODE)["action"].exact.all()
    alone = sweep(study, threat.singles["corners"], MODE)["action"]
    worst = threat.play(study, MODE)["action"]
    assert (alone.returns[:, 1] < clean(policies, 20).returns.numpy() - 1).any()
    assert (worst.returns <= alone.returns + 1e-4).all()


def test_continuous_actions_are_attacked_by_what_fits_them():
    continuous = opened("ppo", smooth=True)
    threat = auto()
    fitting = threat._fitting(game(continuous), MODE)
    assert list(fitting) == ["noise", "corners", "distance"]
    discrete = threat._fitting(game(opened()), MODE)
    assert "distance" not in discrete
    assert {"noise", "corners", "fgsm", "pgd", "critic", "minq"} <= set(discrete)
    assert [name for name in discrete if name.startswith("towards")] == ["towards 0", "towards 1"]


@pytest.mark.parametrize("finalists", [1, 2])
def test_no_more_finalists_play_than_are_asked_for(finalists):
    policies = opened()
    threat = auto(f"effort.finalists={finalists}", "effort.rounds=1", "effort.width=1")
    found = threat.play(game(policies, [0.3], episodes=6), MODE)["action"]
    assert len(found.attacks) <= finalists + 1
    tried = {name: returns.mean() for name, returns in found.singles.items()}
    strongest = min(tried, key=tried.get)
    assert strongest in found.attacks
    assert len(tried) == 8, "all of them were tried"


def test_no_seed_decides_alone_which_attacks_are_finalists():
    """Seed 0 can lose hundreds, and "pgd" takes the most of it; of the two others "fgsm" does."""
    returns = {
        "noise": [[[500.0]], [[20]], [[30]]],
        "pgd": [[[100.0]], [[19]], [[29]]],
        "fgsm": [[[150.0]], [[10]], [[12]]],
    }
    tried = {name: {"action": played(values)} for name, values in returns.items()}
    assert auto()._finalists(tried, 1) == ["fgsm"]
    assert auto()._finalists(tried, 2) == ["pgd", "fgsm"]


def test_what_beats_a_head_alone_beats_both_together():
    """One attack finds 1 with the goal alone, another 2 of both; what is planned finds 3."""
    head = {name: np.ones((1, 1, 1), dtype=int) for name in ("goal", "action")}
    goal = {"goal": head["goal"]}

    def found(value, heads):
        return played([[[value]]], flips=heads, decisions=head)

    modes = {"both": Mode(("goal", "action"), False), "goal": Mode(("goal",), False)}
    finalists = {
        "fgsm": {"both": found(4, head), "goal": found(1, goal)},
        "pgd": {"both": found(2, head), "goal": found(5, goal)},
    }
    plans = {"both": found(3, head), "goal": found(3, goal)}
    threat = auto()
    without = {name: {"both": by_mode["both"]} for name, by_mode in finalists.items()}
    for given, both, winner in ((finalists, 1, "fgsm"), (without, 2, "pgd"), ({}, 3, "planned")):
        worst = threat._worst_by_episode(game(opened(), [0.1]), given, plans, {}, modes)
        assert list(worst) == ["both", "goal"]
        assert worst["both"].returns.tolist() == [[[both]]]
        assert worst["both"].attacks[worst["both"].attack[0, 0, 0]] == winner
        assert worst["goal"].returns.tolist() == [[[1 if given is finalists else 3]]]


ATTACK = ("eps=[0,0.5,1]", "scale=std", "episodes=3", "effort.trial_episodes=2", "effort.rounds=1")


def shares(cell):
    return sum(cell["winners"].values())


def test_the_command_line_audits_and_names_the_winners(rlx, tiny_runs):
    result = rlx("attack", tiny_runs / "train/dqn-cartpole", *ATTACK)
    assert result.code == 0, result.err
    summary = result.summary
    assert set(summary["audit"]) == {"action"}
    findings = {finding["check"]: finding for finding in summary["audit"]["action"]}
    assert findings["radius 0 is clean play"]["passed"]
    assert findings["no larger radius is better by more than chance"]["passed"]
    assert findings["seeds are enough"] == {
        "check": "seeds are enough",
        "passed": False,
        "number": 2,
        "text": "2 seeds; an interval needs 5",
    }
    assert summary["converged"] == {"action": False}, "two seeds are too few"
    for cell in summary["cells"]:
        assert shares(cell) == pytest.approx(1)
    means = [cell["return"]["iqm"] for cell in summary["cells"]]
    assert means == sorted(means, reverse=True)
    for words in ("Audit of the attack", "Which attack was the worst"):
        assert words in result.out
    # Of an agent that is no better than chance there is no area.
    is_bounded = "an upper bound at best (not confirmed: " in result.out
    assert is_bounded == (summary["area"]["action"] is not None)


def test_an_env_that_cannot_be_copied_is_attacked_by_what_won_the_trial(rlx):
    run = rlx(
        "train",
        "agent=dqn",
        "env=gym",
        "env.id=CartPole-v1",
        "seeds=2",
        "steps=300",
        "eval_every=300",
        "eval_episodes=1",
        "final_episodes=1",
        "agent.hidden=[8]",
        "agent.learning_starts=200",
    ).run
    result = rlx("attack", run, *ATTACK)
    assert result.code == 0, result.err
    findings = {finding["check"] for finding in result.summary["audit"]["action"]}
    assert "noise beats gradients nowhere by more than chance" in findings
    assert "no single attack raises the return by more than chance" in findings
    assert "the search has converged" not in findings
    for cell in result.summary["cells"]:
        assert "planned" not in cell["winners"]
        # One attack for each of the two seeds.
        assert set(cell["winners"].values()) <= {0.0, 0.5, 1.0} and shares(cell) == 1


@pytest.mark.parametrize(
    "eps, stack, reason", [("[0]", "1", "a radius above 0"), ("[0.1]", "2", "env.stack")]
)
def test_where_no_adversary_can_learn_the_others_play(rlx, eps, stack, reason):
    run = rlx(
        "train",
        "agent=ppo",
        "env=gym",
        "env.id=CartPole-v1",
        f"env.stack={stack}",
        "seeds=1",
        "steps=300",
        "eval_every=300",
        "eval_episodes=1",
        "final_episodes=1",
        "agent.hidden=[8]",
    ).run
    quick = [key for key in ATTACK if not key.startswith("eps=")]
    result = rlx("attack", run, *quick, f"eps={eps}", "effort.learns=true")
    assert result.code == 0, result.err
    assert reason in result.out and "left out" in result.out
    assert all("learned" not in cell["winners"] for cell in result.summary["cells"])


@dataclass(frozen=True)
class Tip(Attack):
    """Knows the physics of CartPole: a push away from where the pole leans lets it fall further."""

    weight: float
    """Of the pole's angular speed beside its angle."""

    def perturb(self, scores, obs, budget, draw):
        reach = reachable(scores, obs, budget, draw, steps=3, samples=4)
        leans_right = obs[..., 2] + self.weight * obs[..., 3] > 0
        push = (~leans_right).long()  # 0 is a push to the left
        can = reach.mask.gather(-1, push.unsqueeze(-1)).squeeze(-1)
        return reach.shown(torch.where(can, push, reach.clean))


@pytest.mark.slow
@pytest.mark.parametrize("agent, eps", [("dqn", [0.2, 0.4]), ("ppo", [0.5, 1.0])])
def test_an_adversary_that_knows_the_physics_of_cartpole_does_not_win(rlx, agent, eps):
    """Of two policies that balance, at two radii, on the same episodes."""
    run = rlx(
        "train", f"agent={agent}", "env=cartpole", "seeds=2", "steps=80000", "eval_every=10000"
    ).run
    policies = open_runs([Run(run)], "best", torch.device("cpu"))
    scale = np.array([0.33, 0.43, 0.063, 0.47])  # about conf/reference/cartpole.yaml
    study = Game(policies, eps, scale, 20, REPORT, 5000)
    worst = auto("effort=thorough").play(study, MODE)["action"].returns.mean(-1)
    harmless = clean(policies, 20).returns.numpy().mean(-1)
    assert (harmless > 400).all(), harmless
    held_out = [*(Tip(weight) for weight in (0.0, 0.1, 0.2, 1.0)), MinQ(0, 3, 4), MinQ(1, 3, 4)]
    for attack in held_out:
        alone = sweep(study, attack, MODE)["action"].returns.mean(-1)
        assert (worst <= alone * 1.01).all(), (attack, worst, alone)
    assert (worst[:, 1] < harmless / 2).all(), "it is a strong one"
