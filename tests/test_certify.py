"""rlx certify: what it says of a policy is between what is proved and what can be shown."""

import csv
import itertools
from functools import partial

import numpy as np
import pytest
import torch

from rlx import cli
from rlx.agent import Scores
from rlx.attacks.minq import MinQ
from rlx.attacks.pgd import PGD
from rlx.evaluation import REPORT
from rlx.policies import open_runs
from rlx.robustness.certificates import SHARES, certify
from rlx.robustness.clean_decisions import CleanDecisions
from rlx.robustness.sweep import Game
from rlx.runs.finding import find_all

TINY = ("steps=200", "eval_every=200", "eval_episodes=1", "final_episodes=1", "num_envs=4")
EPISODES = 2


@pytest.fixture(autouse=True)
def own_rounding(request):
    """--rounding changes what is computed by operations that no policy has."""
    if request.config.getoption("--rounding"):
        pytest.skip("the operations of another machine's rounding are no part of a policy")


def game(tiny_runs, name, eps, scale, angles=()):
    runs = find_all(str(tiny_runs / "train" / name), "outputs", trusted=False)
    opened = open_runs(runs, "best", torch.device("cpu"))
    scale = np.array(scale)
    return Game(opened, eps, scale, EPISODES, REPORT, 5000, angles=angles, quiet=True)


def pgd(restarts=2):
    return PGD("margin", None, 5, 0.5, restarts, False)


BOXES = {
    "hdqn-acrobot": [1, 1, 1, 1, 12.6, 28.3],
    "dqn-cartpole": [50, 50, 10, 50],
    "ppo-cartpole": [10, 10, 2, 10],
}


@pytest.fixture(scope="module")
def recurrent_run(tmp_path_factory):
    """A folder with a run of PPO with a memory, on CartPole."""
    root = tmp_path_factory.mktemp("recurrent")
    line = ["agent=ppo", "env=cartpole", "agent.recurrent=8", "agent.minibatches=1", "seeds=2"]
    assert cli.run(["train", *line, *TINY, "agent.hidden=[8]", f"outputs={root}"]) == 0
    return root


@pytest.mark.parametrize("name", BOXES)
def test_nothing_that_can_be_shown_contradicts_a_certificate(tiny_runs, recurrent_run, name):
    eps = [0.0, 0.02, 0.2]
    root = recurrent_run if name == "ppo-cartpole" else tiny_runs
    played = game(root, name, eps, BOXES[name])
    found = certify(played, pgd(), 200)
    decisions = CleanDecisions(played.opened, EPISODES)
    torch.manual_seed(0)
    for head, certificates in found.items():
        shares = certificates.shares
        for name_of_less, name_of_more in itertools.pairwise(SHARES):
            assert (shares[name_of_less] <= shares[name_of_more]).all()
        for share in shares.values():
            assert (np.diff(share, axis=1) <= 0).all(), "a larger box contains the smaller one"
            assert (share[:, 0] == 1).all(), "nothing moves in a box of radius 0"
        seeds = [decisions.of(head, seed) for seed in range(decisions.seeds)]
        for number, radius in enumerate(eps[1:], 1):
            still = [torch.ones_like(seed.clean, dtype=torch.bool) for seed in seeds]
            for _ in range(20):
                moved = []
                for seed in seeds:
                    obs = seed.obs.unsqueeze(0)
                    budget = played.budget(torch.full(obs.shape[:2], radius), obs)
                    place = (torch.rand_like(obs) * 2 - 1) * 1.5
                    moved.append(budget.project(obs + budget.radius * place, obs)[0])
                shown = decisions.shown(head, moved)
                for row, decided, seed in zip(still, shown, seeds, strict=True):
                    row &= decided == seed.clean
            for row, seed in enumerate(seeds):
                holds = torch.zeros(EPISODES, dtype=torch.float64)
                holds.index_add_(0, seed.episode, still[row].double())
                sampled = holds.numpy() / certificates.decisions[row]
                assert (shares["certified"][row, number] <= sampled + 1e-9).all()
        assert 0 < shares["certified"].mean() < 1, "a test of all, or of none, shows little"


def test_more_boxes_decide_more(tiny_runs):
    played = game(tiny_runs, "hdqn-acrobot", [0.05, 0.1], BOXES["hdqn-acrobot"])
    few = certify(played, pgd(1), 1)["goal"].shares
    many = certify(played, pgd(1), 300)["goal"].shares
    assert (few["bounded"] == many["bounded"]).all()
    assert (few["certified"] == few["bounded"]).all(), "one box for a decision is its whole box"
    assert (few["certified"] <= many["certified"]).all()
    assert (few["unmoved"] >= many["unmoved"]).all()
    gap = many["unmoved"] - many["certified"]
    assert gap.mean() < 0.02 < (few["unmoved"] - few["certified"]).mean()


def test_what_keeps_the_circle_moves_less_and_certifies_the_same(tiny_runs):
    boxes = BOXES["hdqn-acrobot"]
    free = certify(game(tiny_runs, "hdqn-acrobot", [0.1], boxes), pgd(1), 50)["goal"].shares
    angles = ((0, 1), (2, 3))
    kept = game(tiny_runs, "hdqn-acrobot", [0.1], boxes, angles)
    kept = certify(kept, pgd(1), 50)["goal"].shares
    assert (kept["bounded"] == free["bounded"]).all()
    assert (kept["unflipped"] >= free["certified"]).all()
    assert kept["unflipped"].mean() >= free["unflipped"].mean()


def test_certify_writes_a_table_a_figure_and_a_summary(rlx, tiny_runs, real_figures):
    line = ("eps=[0,0.02,0.1]", "episodes=2", "attack.restarts=1")
    result = rlx("certify", *(tiny_runs / "train/hdqn-acrobot").iterdir(), *line)
    assert result.code == 0, result.err
    summary = result.summary
    assert summary["eps"] == [0.0, 0.02, 0.1]
    assert set(summary["heads"]) == {"goal", "action"}
    goal = summary["heads"]["goal"]
    for share in SHARES:
        assert len(goal[share]) == 3 and len(goal[share][0]["per_seed"]) == 5
        low, high = goal[share][1]["ci95"]
        assert low <= goal[share][1]["iqm"] <= high
    assert goal["undecided"][0] == 0
    assert 0 < summary["certified"]["iqm"] <= 1
    assert "proved" in result.out or summary["certified"]["iqm"] < 1
    with open(result.run / "certify.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 5
    assert all(float(row["certified"]) <= float(row["unmoved"]) for row in rows)
    assert (result.run / "certify.png").stat().st_size > 5000
    again = rlx("certify", *(tiny_runs / "train/hdqn-acrobot").iterdir(), *line)
    assert again.summary["heads"] == summary["heads"]


def test_one_seed_and_a_sweep(rlx, tiny_runs):
    run = tiny_runs / "train/dqn-cartpole"
    one = rlx("certify", run, "seeds=[1]", "eps=0.05", "scale=std", "episodes=1")
    assert one.code == 0, one.err
    assert one.summary["seeds"] == [1] and min(one.summary["scale"]) > 0
    swept = rlx(
        "certify", "-m", run, "eps=0.05", "scale=[1,1,0.1,1]", "episodes=1", "max_boxes=1,50"
    )
    assert swept.code == 0, swept.err
    assert "Certified" in swept.out and "2 of 2 done" in swept.out


@pytest.mark.parametrize(
    ("train", "line", "named"),
    [
        (["agent=ppo", "env=pendulum"], [], "actions are continuous"),
        (["agent=dqn", "env=cartpole", "env.stack=2"], [], "2 observations at once"),
        (["agent=dqn", "env=cartpole"], ["attack=planned"], "attack=planned: plays whole"),
    ],
)
def test_what_cannot_be_certified_is_said_in_one_line(rlx, train, line, named):
    trained = rlx("train", *train, *TINY, "seeds=1", "agent.hidden=[8]")
    assert trained.code == 0, trained.err
    result = rlx("certify", trained.run, "episodes=1", "scale=std", *line)
    assert result.code == 2
    assert named in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not (trained.run.parents[1] / "certify").exists()


def test_minq_with_boxes_forces_no_better_choice(tiny_runs):
    """Branch and bound adds what gradients have not found, and takes nothing away."""
    played = game(tiny_runs, "hdqn-acrobot", [0.5], BOXES["hdqn-acrobot"])
    policy = played.opened.policy
    torch.manual_seed(0)
    obs = torch.rand(len(played.opened.seeds), 200, 6) - 0.5
    budget = played.budget(torch.full(obs.shape[:2], 0.5), obs)
    carry = policy.initial_carry(200)
    scores = Scores(partial(policy.scores, carry=carry, head="goal"))
    forced = []
    for boxes in (None, 200):
        shown = MinQ(None, 1, 0, boxes).perturb(scores, obs, budget, torch.rand)
        decision = scores.best(shown).unsqueeze(-1)
        forced.append(scores(obs).gather(-1, decision).squeeze(-1))
    assert (forced[1] <= forced[0]).all() and (forced[1] < scores(obs).amax(-1)).any()
