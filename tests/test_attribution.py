"""Who carries the harm: Shapley values, of heads and of components of an observation."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from test_planned import game, opened

from rlx.errors import ConfigError
from rlx.robustness.attribution import attribute, component_names, shapley
from rlx.threat import Attack


def test_whoever_owns_the_only_left_glove_earns_most():
    """Two right gloves and a left one; a pair is worth 1. The values are in every textbook."""

    def pair(players):
        return float(2 in players and len(players) > 1)

    np.testing.assert_allclose(shapley(3, pair), [1 / 6, 1 / 6, 2 / 3])


def test_the_values_sum_up_to_what_all_are_worth_and_idlers_get_nothing():
    worths = np.random.default_rng(0).normal(size=8)

    def worth(players):
        return worths[sum(1 << player for player in players if player < 3)]

    worths[0] = 0
    values = shapley(4, worth)
    assert values.sum() == pytest.approx(worths[7])
    assert values[3] == pytest.approx(0)


@dataclass(frozen=True)
class ToTheRight(Attack):
    """Shows each component as large as can be."""

    def perturb(self, scores, obs, budget, draw):
        return budget.project(obs + budget.radius, obs)


@torch.no_grad()
def test_the_harm_is_that_of_the_component_and_the_heads_that_carry_it(capsys):
    """Policies that look at the place alone walk left of the origin, and right of it right."""
    policies = opened()
    for name, parameter in policies.policy.named_parameters():
        parameter.zero_()
        if name.endswith("weight"):
            parameter[:, 0, 0 if name.endswith("layers.0.weight") else 1] = 1
        elif name.endswith("layers.1.bias"):
            parameter[..., 0] = 1e-3
    found = attribute(game(policies), ToTheRight(), "right", 0.3, ["place", "sine"])
    assert abs(found.lost) > 0.01, "the attack changes something"
    assert found.heads == {"action": pytest.approx(found.lost)}
    assert found.components["place"] == pytest.approx(found.lost)
    assert found.components["sine"] == pytest.approx(0, abs=1e-6)
    out = capsys.readouterr().out
    # Clean play, one head, and three combinations of two components.
    assert "attribution right at eps 0.3, 5 combinations" in out
    assert "100% of the combinations, 0 s left" in out


def test_of_a_stack_the_newest_components_are_asked_for():
    policies = opened()
    stacked = replace(policies, spec=replace(policies.spec, stack=5))
    study = replace(game(stacked), scale=np.ones(10))
    assert component_names(study, None) == ["obs[0]", "obs[1]"]
    units = [f"{name}, {age} ago" for age in range(4, 0, -1) for name in "xy"]
    assert component_names(study, [*units, "x", "y"]) == ["x", "y"]
    with pytest.raises(ConfigError, match="at most 8 components, not 10"):
        component_names(replace(study, opened=policies), None)
