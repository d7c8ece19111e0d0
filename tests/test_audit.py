"""Each check of a study warns where something is wrong and says by how much; else it passes."""

from dataclasses import replace

import numpy as np
import pytest

from rlx.robustness import audit
from rlx.robustness.clean_states import CleanStates
from rlx.robustness.sweep import Played

SEEDS, EPISODES = 6, 20
EPS = [0.0, 0.1, 0.2]
LOOKED_AT = CleanStates({"action": np.zeros(3)}, {"action": 0.0})


def noise(*shape, size=1.0):
    return size * np.random.default_rng(0).standard_normal(shape)


CLEAN = 100 + noise(SEEDS, EPISODES, size=5.0)


def sound(**changes):
    """A study in which nothing is wrong: each radius costs ten more than the one before."""
    returns = CLEAN[:, None] - np.array([0.0, 10, 20])[:, None]
    shape = returns.shape
    trial = CLEAN[:, None] - np.array([5.0, 10])[:, None] + noise(SEEDS, 2, EPISODES)
    played = Played(
        returns=returns,
        lengths=np.full(shape, 10),
        truncated=np.zeros(shape, dtype=bool),
        decisions={"action": np.full(shape, 10)},
        flips={"action": np.full(shape, 1)},
        attacks=["pgd", "planned"],
        attack=np.zeros(shape, dtype=np.int64),
        halved=returns.copy(),
        exact=np.zeros(shape, dtype=bool),
        singles={"noise": trial, "pgd": trial - 2},
        unattacked=CLEAN,
    )
    return replace(played, **changes)


def findings(played, clean=CLEAN, eps=EPS, floor=-np.inf, states=LOOKED_AT):
    found = audit.audit(played, ["action"], eps, clean, 0.0, floor, states)
    return {finding.check: finding for finding in found}


def warnings(*arguments, **keywords):
    return {
        check for check, finding in findings(*arguments, **keywords).items() if not finding.passed
    }


def test_the_share_of_exact_episodes_is_said():
    exact = np.zeros((SEEDS, len(EPS), EPISODES), dtype=bool)
    exact[:3] = True
    finding = findings(sound(exact=exact))["how far the search was exhaustive"]
    assert finding.passed and finding.number == 0.5 and "50%" in finding.text
    assert finding.is_note and not findings(sound())["seeds are enough"].is_note
    assert "how far the search was exhaustive" not in findings(sound(exact=None))


def test_a_sound_study_passes_every_check():
    assert warnings(sound(), floor=0.0) == set()
    assert list(findings(sound(), floor=0.0)) == [
        "radius 0 is clean play",
        "no larger radius is better by more than chance",
        "no seed gains by more than chance",
        "noise beats gradients nowhere by more than chance",
        "no single attack raises the return by more than chance",
        "gradients exist",
        "more than one attack was played",
        "the search has converged",
        "how far the search was exhaustive",
        "how much is at the lowest return",
        "seeds are enough",
    ]


def test_a_finding_is_plain_numbers_as_json_has_them():
    for finding in findings(sound(), floor=0.0).values():
        values = finding.as_dict()
        assert list(values) == ["check", "passed", "number", "text"]
        assert type(values["passed"]) is bool
        assert isinstance(values["number"], int | float)


@pytest.mark.parametrize("episodes, passed", [(2, True), (3, False)])
def test_a_radius_of_zero_that_is_not_clean_play_is_named_with_its_share(episodes, passed):
    returns = sound().returns.copy()
    returns[0, 0, :episodes] -= 1
    finding = findings(sound(returns=returns))["radius 0 is clean play"]
    assert finding.passed == passed and finding.number == pytest.approx(episodes / 120)
    without = findings(sound(returns=returns[:, 1:], halved=returns[:, 1:]), eps=EPS[1:])
    assert "radius 0 is clean play" not in without


def test_rounding_of_rewards_is_no_difference_at_radius_zero():
    returns = sound().returns + noise(SEEDS, 3, EPISODES, size=1e-4)
    finding = findings(sound(returns=returns))["radius 0 is clean play"]
    assert finding.passed and finding.number == 0


def test_a_larger_radius_that_is_better_by_more_than_chance_is_named():
    returns = sound().returns.copy()
    returns[4, 2] = returns[4, 1] + 3 + noise(EPISODES)
    finding = findings(sound(returns=returns))["no larger radius is better by more than chance"]
    assert not finding.passed and finding.number == pytest.approx(3, abs=0.5)
    assert "1 of 12 steps" in finding.text
    # The radii may come in any order.
    mixed = findings(sound(returns=returns[:, [2, 0, 1]]), eps=[0.2, 0.0, 0.1])
    assert mixed["no larger radius is better by more than chance"] == finding
    returns[4, 2] = returns[4, 1] + 0.2 + noise(EPISODES)
    chance = findings(sound(returns=returns))["no larger radius is better by more than chance"]
    assert chance.passed and chance.number > 0, "it is told all the same"


def test_a_seed_that_is_better_off_than_without_the_attack_is_named():
    check = "no seed gains by more than chance"
    returns = sound().returns[:, 1:].copy()
    returns[2] = CLEAN[2] + 1.5 + noise(2, EPISODES)
    finding = findings(sound(returns=returns, halved=None), eps=EPS[1:])[check]
    assert not finding.passed and finding.number == pytest.approx(1.5, abs=0.6)
    assert "2 of 12 cells" in finding.text
    returns[2] = CLEAN[2] + 0.2 + noise(2, EPISODES)
    assert findings(sound(returns=returns, halved=None), eps=EPS[1:])[check].passed


def test_noise_that_beats_every_gradient_is_named_with_its_cells():
    stronger = sound().singles["pgd"].copy()
    stronger[3, 1] -= 8
    singles = {**sound().singles, "corners": stronger + noise(SEEDS, 2, EPISODES)}
    finding = findings(sound(singles=singles))["noise beats gradients nowhere by more than chance"]
    assert not finding.passed and finding.number == pytest.approx(1 / 12)
    assert finding.text.endswith(" by more than chance in 1 of 12 cells (seed and radius)")
    for missing in ("noise", "pgd"):
        left = {name: returns for name, returns in sound().singles.items() if name != missing}
        assert "noise beats gradients nowhere by more than chance" not in findings(
            sound(singles=left)
        )


def test_a_single_attack_that_raises_the_return_is_named_against_clean_play():
    """A policy that any attack helps shows only against clean play of the same episodes."""
    helpful = CLEAN[:, None] + 7 + noise(SEEDS, 2, EPISODES)
    singles = {"noise": helpful - 1, "critic": helpful}
    finding = findings(sound(singles=singles))[
        "no single attack raises the return by more than chance"
    ]
    assert not finding.passed and finding.number == pytest.approx(7, abs=0.3)
    assert finding.text.startswith("critic raises it by 7")
    harmless = {"noise": CLEAN[:, None] + noise(SEEDS, 2, EPISODES)}
    finding = findings(sound(singles=harmless))[
        "no single attack raises the return by more than chance"
    ]
    assert finding.passed and finding.number == 0
    assert "no single attack raises the return by more than chance" not in findings(
        sound(singles={})
    )


@pytest.mark.parametrize("flat, passed", [(0.01, True), (0.02, False)])
def test_scores_without_gradients_are_named_with_their_share(flat, passed):
    states = CleanStates({}, {"action": flat, "another": 0.5})
    finding = findings(sound(), states=states)["gradients exist"]
    assert finding.passed == passed and finding.number == flat
    assert "gradients exist" not in findings(sound(), states=CleanStates({}, {}))


@pytest.mark.parametrize("more, passed", [(1.0, True), (10.0, False)])
def test_how_much_the_last_doubling_of_the_effort_lowered_the_area(more, passed):
    """The score is 1 at 100: ten less at two of three radii are 7.5 % of the area."""
    halved = sound().returns + more * np.array([0.0, 1, 1])[:, None]
    finding = findings(sound(halved=halved))["the search has converged"]
    area = more / CLEAN.mean() * 0.75
    assert finding.passed == passed and finding.number == pytest.approx(area, rel=0.05)
    assert "the search has converged" not in findings(sound(halved=None))


def test_a_search_that_found_more_at_one_of_many_radii_has_not_converged():
    """The score is 1 at 100: what falls by 15 at one of 31 radii is half a percent of the area."""
    eps = [float(number) for number in range(31)]
    returns = np.repeat(CLEAN[:, None], len(eps), 1)
    halved = returns.copy()
    returns[:, 15:] -= 20
    halved[:, 16:] -= 20
    halved[:, 15] -= 5
    many = sound(returns=returns, halved=halved, singles={})
    finding = findings(many, eps=eps)["the search has converged"]
    assert not finding.passed and finding.number < audit.CONVERGED
    assert "at one radius by 0.1" in finding.text


def test_few_seeds_are_named():
    few = [0, 1, 2, 3]
    played = sound(
        returns=sound().returns[few], halved=sound().halved[few], singles={}, unattacked=None
    )
    finding = findings(played, clean=CLEAN[few])["seeds are enough"]
    assert not finding.passed and finding.number == 4
    assert findings(sound())["seeds are enough"].passed


@pytest.mark.parametrize("attack", [None, sound().attack])
def test_one_attack_alone_is_named(attack):
    """Also where it came from a list of many, as attack=planned."""
    one = sound(attack=attack, attacks=["planned"], singles={}, unattacked=None)
    finding = findings(one)["more than one attack was played"]
    assert not finding.passed and finding.number == 1
    assert finding.text == "one alone; attack=auto plays many"
    finding = findings(sound(attacks=["planned"], singles={}))["more than one attack was played"]
    assert not finding.passed
    assert finding.text == "one alone: the others were tried, and could add nothing"
    finding = findings(sound())["more than one attack was played"]
    assert finding.passed and finding.text == "3 attacks"


def test_findings_are_told_in_the_right_number():
    """Of none, one and many: each a true sentence."""
    single = "no single attack raises the return by more than chance"
    trial = sound().singles["pgd"]
    assert findings(sound(singles={"pgd": trial}))[single].text == "pgd does not"
    assert findings(sound(singles={"pgd": trial, "minq": trial}))[single].text == "none of 2 does"
    one = sound(returns=sound().returns[:1], halved=sound().halved[:1], singles={}, unattacked=None)
    assert findings(one, clean=CLEAN[:1])["seeds are enough"].text == "1 seed; an interval needs 5"
    assert findings(sound())["seeds are enough"].text == "6 seeds"
    gains = findings(sound(returns=sound().returns - 1, halved=None))
    assert gains["no seed gains by more than chance"].text == (
        "no seed returns more than in clean play"
    )
    rises = gains["no larger radius is better by more than chance"].text
    assert rises == "a seed's return rises in 0 of 12 steps to a larger radius"


def test_the_share_of_episodes_at_the_lowest_return_is_told():
    returns = sound().returns.copy()
    returns[:3, 2] = 10
    finding = findings(sound(returns=returns), floor=10.0)["how much is at the lowest return"]
    assert finding.passed and finding.number == 0.5
    assert finding.text == "50% of the episodes at eps 0.2 have 10; none can be below"
    assert "how much is at the lowest return" not in findings(sound(), floor=-np.inf)


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, shape: rng.standard_normal(shape),
        lambda rng, shape: rng.standard_normal(shape) * (rng.random(shape) < 0.1),
        lambda rng, shape: 300.0 * (rng.random(shape) < 0.3) - 300.0 * (rng.random(shape) < 0.3),
    ],
    ids=["normal", "seldom", "falls"],
)
def test_chance_alone_seldom_warns(draw):
    """An attack that does nothing, in 10 seeds × 12 radii: at most one study in ten has a warning.

    Two standard errors for each cell by itself would warn in nearly all of them.
    """
    studies = 60
    warned = {"larger": 0, "seed": 0, "noise": 0, "single": 0}
    for number in range(studies):
        rng = np.random.default_rng(number)
        shape = (10, 12, 20)
        returns = draw(rng, shape)
        clean = np.zeros((10, 20))
        two = {"noise": draw(rng, shape), "pgd": draw(rng, shape)}
        eps = list(np.linspace(0.1, 1, 12))
        checks = {
            "larger": audit._larger_never_better(returns, eps),
            "seed": audit._never_above_clean(returns, eps, clean),
            "noise": audit._noise_never_wins(two),
            "single": audit._never_raises(two, clean),
        }
        for name, finding in checks.items():
            warned[name] += not finding.passed
    assert max(warned.values()) <= studies / 10
