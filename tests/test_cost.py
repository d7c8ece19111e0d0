"""What a study says it has cost is what was computed."""

import json

import pytest
import torch
from conftest import TINY

from rlx.agent import Scores
from rlx.robustness.cost import Costs


def test_scores_and_their_gradients_are_counted_where_they_are_paid_for():
    costs = Costs()
    scores = Scores(lambda obs: obs @ torch.ones(3, 2))
    obs = torch.ones(2, 5, 3, requires_grad=True)
    scores(obs)  # nobody pays
    with costs.of("outer"):
        scores(obs.detach())
        with costs.of("inner"):
            values = scores(obs)
            torch.autograd.grad(values[..., 0].sum(), obs, retain_graph=True)
            torch.autograd.grad(values[..., 1].sum(), obs)
        scores(obs.detach()[:, :1])
    scores(obs)
    counts = {name: (cost.evaluations, cost.gradients) for name, cost in costs.by_name.items()}
    assert counts == {"outer": (12, 0), "inner": (10, 20)}
    assert Scores.meter is None


def test_time_is_counted_once(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 10.0])
    monkeypatch.setattr("rlx.robustness.cost.time.monotonic", lambda: next(clock))
    costs = Costs()
    with costs.of("outer"), costs.of("inner"):
        pass
    assert {name: cost.seconds for name, cost in costs.by_name.items()} == {"outer": 8, "inner": 2}


def test_an_error_leaves_no_meter_behind():
    with pytest.raises(ValueError, match="no"), Costs().of("it"):
        raise ValueError("no")
    assert Scores.meter is None


def test_a_study_keeps_what_it_has_cost(rlx):
    """Every episode has 200 steps, in which two steps of PGD from one start cost 2 gradients.

    They cost 6 evaluations: of the clean scores, at 2 gradients, at the last step, and of what is
    decided with the attack and without it.
    """
    tiny = (*TINY, "agent.rollout_steps=32", "agent.hidden=[16]", "seeds=2")
    run = rlx("train", "agent=ppo", "env=pendulum", *tiny).run
    pgd = ("attack=pgd", "attack.loss=distance", "attack.steps=2", "attack.restarts=1")
    result = rlx("attack", run, *pgd, "eps=[0.1]", "episodes=3")
    assert result.code == 0, result.err
    cost = json.loads((result.run / "summary.json").read_text())["cost"]
    decisions = 2 * 3 * 200
    assert (cost["pgd"]["evaluations"], cost["pgd"]["gradients"]) == (6 * decisions, 2 * decisions)
    assert cost["clean play"]["evaluations"] == decisions
    assert cost["pgd"]["minutes"] > 0
    assert "7,200" in result.out and "2,400" in result.out
