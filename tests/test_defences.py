"""Defences: what they add to a learning step, and that agents so trained are harder to move."""

import copy
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from conftest import compose
from test_agents import Learner

from rlx.agent import Scores
from rlx.agents import dqn, ppo
from rlx.conf import conf_dir
from rlx.config import build
from rlx.defence import Decisions, Defence, Surrogate, Trial
from rlx.defences.adversarial import Adversarial
from rlx.defences.radial import Radial
from rlx.defences.sa import SA
from rlx.defences.wocar import WorstCaseQ, worst_case_loss
from rlx.errors import ConfigError, RunError
from rlx.evaluation import evaluate
from rlx.nn.networks import MLP, QNetwork
from rlx.nn.rng import Streams
from rlx.nn.seed_axis import take
from rlx.policies import open_runs
from rlx.runs.finding import find
from rlx.runs.listing import read
from rlx.runs.trust import OWN, users_imports
from rlx.show.training_comparison import differences
from rlx.threat import Budget

SEEDS = torch.tensor([3, 5])
SIZE = 4
ROWS = 6
CHOICES = 3
RADIUS = 0.1
COMMON = {"eps": RADIUS, "scale": [1.0] * SIZE, "ramp": 0.0, "steps": 1}


def margin(scores: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
    """By how much the best other one of `scores` [S, B, A] exceeds that of `choice`, [S, B]."""
    index = choice.unsqueeze(-1)
    others = scores.scatter(-1, index, -torch.inf)
    return others.amax(-1) - scores.gather(-1, index).squeeze(-1)


def rng() -> Streams:
    return Streams(SEEDS, "test")


def values(hidden: list[int], *, dueling: bool = False) -> QNetwork:
    return QNetwork(SIZE, hidden, CHOICES, dueling, rng())


def decisions(defence: Defence, network, *, radius=RADIUS, are_values=True, std=None) -> Decisions:
    """Decisions of a network on some observations, in boxes without bounds."""
    obs = torch.linspace(-1, 1, 2 * ROWS * SIZE).sin().view(2, ROWS, SIZE) * 2
    taken = (torch.arange(2 * ROWS) % CHOICES).view(2, ROWS)
    everywhere = torch.full((SIZE,), torch.inf)
    budget = Budget(torch.full_like(obs, radius), -everywhere, everywhere)
    return Decisions(
        defence,
        Scores(network),
        network.interval,
        obs,
        taken,
        budget,
        rng(),
        are_values,
        std,
    )


# What observations in a box can do to the scores of a network.


@pytest.mark.parametrize("activation", [torch.relu_, torch.tanh])
@pytest.mark.parametrize("hidden", [[], [8], [8, 5]], ids=str)
def test_the_interval_of_a_network_holds_all_that_is_in_the_box(hidden, activation):
    network = MLP(SIZE, hidden, CHOICES, rng(), activation)
    low = torch.rand(2, ROWS, SIZE) - 0.5
    high = low + torch.rand(2, ROWS, SIZE)
    lowest, highest = network.interval(low, high)
    for _ in range(300):
        inside = network(low + torch.rand_like(low) * (high - low))
        assert (inside >= lowest - 1e-5).all() and (inside <= highest + 1e-5).all()
    if not hidden:
        # Of one layer it is exact: a corner of the box has the highest value of an output.
        corner = torch.where(network.layers[0].weight[..., 0].unsqueeze(1) > 0, high, low)
        torch.testing.assert_close(network(corner)[..., 0], highest[..., 0])


def test_the_interval_of_a_dueling_network_is_exact_where_it_has_one_layer():
    """Value and advantages are bounded apart; the mean of the advantages is not bounded twice."""
    network = values([], dueling=True)
    low = torch.rand(2, ROWS, SIZE) - 0.5
    high = low + torch.rand(2, ROWS, SIZE)
    lowest, highest = network.interval(low, high)
    parts_low, parts_high = network.body.interval(low, high)
    share = torch.full((CHOICES, CHOICES), -1 / CHOICES) + torch.eye(CHOICES)
    for action in range(CHOICES):
        weight = share[action]
        at_best = torch.where(weight > 0, parts_high[..., 1:], parts_low[..., 1:])
        expected = parts_high[..., 0] + at_best @ weight
        torch.testing.assert_close(highest[..., action], expected)
        at_worst = torch.where(weight > 0, parts_low[..., 1:], parts_high[..., 1:])
        expected = parts_low[..., 0] + at_worst @ weight
        torch.testing.assert_close(lowest[..., action], expected)


def test_the_search_stays_in_the_box_and_finds_the_worst_corner():
    network = values([])
    given = decisions(SA(**COMMON, weight=1, least_margin=100, gradients=4), network)
    weight = network.body.layers[0].weight
    best = network(given.obs).argmax(-1)
    moved = given.worst(lambda obs: margin(network(obs), best), 4)
    assert ((moved - given.obs).abs() <= RADIUS * 1.001).all()
    # Of a linear network: each other choice gains the radius times |w_b − w_a|, summed.
    scores = network(given.obs)
    gains = torch.full((2, ROWS, CHOICES), -torch.inf)
    for seed in range(2):
        for row in range(ROWS):
            a = int(best[seed, row])
            for b in range(CHOICES):
                if b != a:
                    gain = RADIUS * (weight[seed, :, b] - weight[seed, :, a]).abs().sum()
                    gains[seed, row, b] = scores[seed, row, b] - scores[seed, row, a] + gain
    found = margin(network(moved), best)
    # The gradient is that of one other choice: where two are close, the other may be the worst.
    assert (found <= gains.amax(-1) + 1e-5).all()
    assert ((found - gains.amax(-1)).abs() < 1e-5).float().mean() > 0.8


# What each adds to the loss.


def test_sa_asks_values_for_a_margin():
    network = values([])
    wide = decisions(SA(**COMMON, weight=2, least_margin=100, gradients=4), network)
    best = network(wide.obs).argmax(-1)
    moved = decisions(wide.defence, network).worst(lambda obs: margin(network(obs), best), 4)
    torch.testing.assert_close(wide.penalty(), 2 * margin(network(moved), best).mean(1))
    # What is safe by more than the margin adds nothing that could be lowered.
    narrow = decisions(SA(**COMMON, weight=2, least_margin=0, gradients=4), network, radius=1e-4)
    safe = margin(network(narrow.obs), best) < -0.01
    assert safe.any()
    penalty = narrow.defence.penalty(narrow)
    assert (penalty[safe] == 0).all() and (penalty >= 0).all()


def test_sa_asks_policies_not_to_differ():
    network = MLP(SIZE, [8], CHOICES, rng(), torch.tanh)
    defence = SA(**COMMON, weight=1, least_margin=0, gradients=4)
    clean = network(decisions(defence, network).obs).softmax(-1)
    still = decisions(defence, network, radius=0.0, are_values=False)
    torch.testing.assert_close(still.penalty(), torch.zeros(2), atol=1e-6, rtol=0)
    given = decisions(defence, network, are_values=False)
    worst = given.defence.penalty(given)
    sampled = torch.zeros(2, ROWS)
    for _ in range(200):
        other = network(given.obs + (torch.rand_like(given.obs) * 2 - 1) * RADIUS).softmax(-1)
        sampled = torch.maximum(sampled, (clean * (clean / other).log()).sum(-1))
    assert (worst >= sampled).float().mean() > 0.8
    # Of normal distributions of one deviation: half the squared distance of their means.
    std = torch.full((2, 1, CHOICES), 0.5)
    given = decisions(defence, network, radius=0.0, are_values=False, std=std)
    assert given.penalty().abs().max() < 1e-9


def test_radial_is_its_formula():
    network = values([8])
    given = decisions(Radial(**COMMON, weight=3), network)
    low, high = network.interval(given.obs - RADIUS, given.obs + RADIUS)
    scores = network(given.obs)
    expected = torch.zeros(2)
    for seed in range(2):
        for row in range(ROWS):
            a = int(given.taken[seed, row])
            for b in range(CHOICES):
                lead = max(0.0, float(scores[seed, row, a] - scores[seed, row, b]))
                overlap = float(high[seed, row, b] - low[seed, row, a]) + lead / 2
                expected[seed] += lead * max(0.0, overlap) / ROWS
    assert expected.min() > 0
    torch.testing.assert_close(given.penalty(), 3 * expected)


@pytest.mark.parametrize("std", [None, torch.full((2, 1, CHOICES), 0.5)], ids=["choices", "normal"])
def test_radial_rates_a_policy_by_the_worst_that_the_box_can_do(std):
    """Of one layer: what bounds of each output by itself allow."""
    network = MLP(SIZE, [], CHOICES, rng(), torch.tanh)
    plain = decisions(Radial(**COMMON, weight=3), network, are_values=False, std=std)
    outputs = network(plain.obs)
    reach = RADIUS * network.layers[0].weight.abs().sum(1, keepdim=True)
    assert reach.max() < 0.3
    taken = plain.taken if std is None else outputs + 0.3

    def log_prob(outputs):
        if std is None:
            return outputs.log_softmax(-1).gather(-1, taken.unsqueeze(-1)).squeeze(-1)
        return torch.distributions.Normal(outputs, std).log_prob(taken).sum(-1)

    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * CHOICES)
    corners = torch.stack([log_prob(outputs + reach * sign) for sign in signs])
    is_good = torch.arange(2 * ROWS).view(2, ROWS) % 3 > 0
    advantage = torch.where(is_good, 1.5, -0.5)
    surrogate = Surrogate(lambda log_prob: -advantage * log_prob.exp(), is_good)
    worst = torch.where(is_good, corners.amin(0), corners.amax(0))
    expected = 3 * (-advantage * worst.exp()).mean(1)
    penalty = replace(plain, taken=taken, surrogate=surrogate).penalty()
    torch.testing.assert_close(penalty, expected)


def test_wocar_learns_what_is_left_where_the_worst_is_forced():
    """Of one layer, whose bounds are exact: which actions a box can force is seen at its ends."""
    networks = [WorstCaseQ(SIZE, [], CHOICES, 0.25, Streams(SEEDS, name)) for name in "ab"]
    online, target = (torch.nn.Sequential(torch.nn.Identity(), net) for net in networks)
    given = decisions(Radial(**COMMON, weight=1), networks[0])
    batch = {
        "obs": given.obs,
        "next_obs": given.obs.flip(1),
        "action": given.taken,
        "reward": torch.linspace(-2, 2, 2 * ROWS).view(2, ROWS),
        "discount": torch.tensor([0.9, 0.0]).repeat(2, ROWS // 2),
    }
    budget = replace(given.budget, radius=torch.full_like(given.obs, RADIUS))
    loss = worst_case_loss(online, target, batch, budget)
    forced = []
    for seed in range(2):
        weight = networks[0].body.layers[0].weight[seed]
        reach = RADIUS * weight.abs().sum(0)
        reach = 0.75 * reach[:CHOICES] + 0.25 * reach[CHOICES:]
        for row in range(ROWS):
            now = batch["obs"][seed : seed + 1, row : row + 1].expand(2, -1, -1)
            then = batch["next_obs"][seed : seed + 1, row : row + 1].expand(2, -1, -1)
            mean = networks[0](then)[seed, 0]
            can = [float(mean[a] + reach[a]) >= float((mean - reach).max()) for a in range(CHOICES)]
            forced.append(sum(can))
            values = networks[1].both(then)[1][seed, 0]
            least = min(float(values[a]) for a in range(CHOICES) if can[a])
            wanted = float(batch["reward"][seed, row] + batch["discount"][seed, row] * least)
            own = networks[0].both(now)[1][seed, 0, batch["action"][seed, row]]
            error = abs(float(own) - wanted)
            huber = error**2 / 2 if error < 1 else error - 0.5
            assert float(loss[seed, row]) == pytest.approx(huber, abs=1e-5)
    assert 1 in forced and max(forced) > 1


def test_the_adversary_of_atla_learns_in_turns_and_earns_what_the_policy_loses():
    words = ("defence=atla", "agent.defence.scale=[1,1,1,1]", "agent.defence.ramp=0",
             "agent.defence.rollouts=2", "agent.defence.eps=0.5")  # fmt: skip
    config = compose("train", "agent=ppo", "env=cartpole", "tuned=none", *TINY["ppo"], *words)
    learner = Learner(config, [3, 5])
    agent = learner.agent
    learnt = []
    for _ in range(6):
        before = [copy.deepcopy(part.state_dict()) for part in (agent.policy, agent.adversary)]
        for step in range(16):
            true_obs = learner.obs
            transition = learner.step()
            if step < 15:
                seen = agent.obs[:, :, step]
                assert 0 < (seen - true_obs).abs().max() <= 0.5 * 1.001
                assert torch.equal(agent.adversary.obs[:, :, step], true_obs)
                assert torch.equal(agent.adversary.reward[:, :, step], -transition.reward)
        after = [agent.policy.state_dict(), agent.adversary.policy.state_dict()]
        own = {name.removeprefix("policy."): value for name, value in before[1].items()}
        learnt.append([differ(before[0], after[0]), differ(own, after[1])])
    assert learnt == [[True, False]] * 2 + [[False, True]] * 2 + [[True, False]] * 2


def differ(one: dict, other: dict) -> bool:
    """Whether a tensor of `other` is another in `one`."""
    return any(not torch.equal(one[name], value) for name, value in other.items())


def test_adversarial_moves_a_share_of_what_is_learnt_from():
    network = values([8])
    for share, least, most in ((0.0, 0, 0), (0.5, 2, 10), (1.0, 12, 12)):
        given = decisions(Adversarial(**COMMON, share=share, gradients=2), network)
        moved = (given.learnt() != given.obs).any(-1)
        assert least <= int(moved.sum()) <= most
        assert given.penalty().abs().sum() == 0


def test_the_radius_rises_linearly():
    defence = SA(**{**COMMON, "eps": 0.2, "ramp": 0.5, "steps": 1000}, weight=1, least_margin=1,
                 gradients=1)  # fmt: skip
    radii = defence.radius(torch.tensor([0, 250, 500, 1000]))
    torch.testing.assert_close(radii, torch.tensor([0.0, 0.1, 0.2, 0.2]))


# In a training.

SHORT = ("steps=400", "eval_every=200", "eval_episodes=2", "final_episodes=2", "seeds=2")
TINY = {
    "dqn": ("agent.learning_starts=50", "agent.hidden=[16]"),
    "hdqn": ("agent.learning_starts=50", "agent.hidden=[16]"),
    "ppo": ("agent.rollout_steps=16", "agent.minibatches=2", "agent.hidden=[16]"),
}


def metrics(run) -> list[dict]:
    """What it has logged, but for its speed, and for returns under an attack."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    left_out = ("time/steps_per_s", "return/attacked")
    return [{name: value for name, value in row.items() if name not in left_out} for row in rows]


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        ("dqn", ("defence=sa", "agent.defence.weight=0")),
        ("hdqn", ("defence=radial", "agent.defence.weight=0")),
        ("ppo", ("defence=adversarial", "agent.defence.share=0")),
    ],
)
def test_a_defence_without_weight_changes_nothing(agent, words, rlx):
    shared = ("train", f"agent={agent}", "env=cartpole", "tuned=none", *SHORT, *TINY[agent])
    plain = rlx(*shared, "outputs=plain", "keep=newest")
    defended = rlx(*shared, "outputs=defended", *words)
    assert plain.code == 0 and defended.code == 0, defended
    assert metrics(plain.run) == metrics(defended.run)


@pytest.mark.parametrize(
    ("agent", "defence"),
    [
        ("dqn", "sa"),
        ("dqn", "wocar"),
        ("hdqn", "adversarial"),
        ("ppo", "adversarial"),
        ("ppo", "atla"),
    ],
)
def test_a_defended_run_resumes_as_if_it_had_never_stopped(agent, defence, rlx):
    words = (f"agent={agent}", "env=cartpole", "tuned=none", f"defence={defence}", *TINY[agent])
    scale = "agent.defence.scale=reference"
    over = ["agent.defence.steps=800", *(["agent.anneal_steps=800"] if agent == "ppo" else [])]
    whole = rlx("train", *words, *SHORT, scale, *over, "steps=800", "outputs=whole")
    assert whole.code == 0, whole
    half = rlx("train", *words, *SHORT, scale, *over, "outputs=half")
    assert rlx("resume", half.run, "steps=800").code == 0
    assert metrics(whole.run) == metrics(half.run)


@pytest.mark.parametrize("eps", [0, 0.3])
@pytest.mark.parametrize("agent", ["hdqn", "ppo"])
def test_the_weights_are_kept_that_are_best_under_the_attack(agent, eps, rlx):
    words = ("defence=adversarial", "agent.defence.scale=[1,1,1,1]", f"agent.defence.eps={eps}",
             "agent.learning_rate=1e-2", "eval_every=100")  # fmt: skip
    result = rlx(
        "train", f"agent={agent}", "env=cartpole", "tuned=none", *SHORT, *TINY[agent], *words
    )
    assert result.code == 0, result
    rows = [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]
    for seed in (0, 1):
        returns = {
            row["step"]: min(row["return/mean"], row["return/attacked"])
            for row in rows
            if row["seed"] == seed
        }
        best = max(step for step, value in returns.items() if value == max(returns.values()))
        assert result.summary["kept"]["step"][seed] == best
        assert result.summary["kept"]["value"][seed] == returns[best]
    differs = [row["return/attacked"] != row["return/mean"] for row in rows]
    assert any(differs) == (eps > 0)
    # The header, each evaluation and the end tell of the defence, and why the kept may be lower.
    defence = f"adversarial (eps {eps})"
    assert f"-cartpole, protocol corrected, defence {defence}" in result.out
    assert "keep     attacked: the weights whose lower return" in result.out
    assert result.out.count("  attacked ") == len({row["step"] for row in rows})
    assert f"defence  {defence}; the returns above are without an attack" in result.out
    assert f"defence={defence}" in rlx("show", result.run).out


def test_a_seed_is_attacked_beside_others_as_alone():
    """Episodes end at other steps, so that the batches shrink at other times."""
    cpu = torch.device("cpu")
    opened = open_runs([find("zoo:dqn-cartpole", "")], "best", cpu, 4)
    units = [0.33, 0.43, 0.063, 0.47]
    defence = Radial(**{**COMMON, "eps": 0.5, "scale": units}, weight=1)
    trial = Trial(defence, opened.spec, 7, cpu)

    def returns(rows, make_choose=trial):
        part = take(opened.policy, torch.tensor(rows))
        return evaluate(part, opened.make_env, len(rows), 7, 0, cpu, make_choose).returns

    together = returns([0, 1, 2, 3])
    for row in range(4):
        same = returns([row])[0] == together[row]
        assert same.sum() >= 5, "in a smaller batch: rounding may break a tie"
    assert together.mean() < 0.5 * returns([0, 1, 2, 3], None).mean()


def test_atla_learns_with_numbers_of_each_seed(rlx):
    words = ("agent=ppo", "env=cartpole", "tuned=none", "defence=atla", *SHORT, *TINY["ppo"])
    numbers = ("agent.defence.scale=reference", "agent.learning_rate=[1e-3,3e-4]")
    assert rlx("train", *words, *numbers).code == 0


def test_a_run_keeps_the_numbers_of_its_scale(rlx):
    result = rlx("train", "agent=dqn", "env=acrobot", "tuned=none", "defence=sa", *SHORT,
                 *TINY["dqn"])  # fmt: skip
    assert result.code == 0, result
    config = (result.run / "config.yaml").read_text()
    assert "12.566" in config and "28.274" in config, "4π and 9π, half the range of the speeds"
    assert "keep: attacked" in config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("agent=efficientzero", "env=cartpole", "defence=sa"), "agent.defence: unknown key"),
        (("agent=dqn", "env=frozen_lake", "defence=sa"), "agent.defence: needs observations"),
        (("agent=dqn", "env=cartpole", "defence=sa", "agent.defence.scale=bounds"),
         "agent.defence.scale=bounds: components [1, 3]"),
        (("agent=dqn", "env=acrobot", "defence=sa", "agent.defence.scale=std"),
         "agent.defence.scale=std: expected bounds, reference, or one number per component"),
        (("agent=dqn", "env=acrobot", "defence=sa", "agent.defence.scale=[1,2]"), "6 numbers"),
        (("agent=dqn", "env=acrobot", "defence=sa", "agent.defence.eps=-1"), "agent.defence.eps"),
        (("agent=dqn", "env=acrobot", "defence=sa", "agent.defence.wieght=1"), "wieght"),
        (("agent=dqn", "env=acrobot", "defence=sas"), "sas"),
        (("agent=dqn", "env=acrobot", "agent.defence.eps=1"), "is of no defence; add one"),
        (("agent=dqn", "env=acrobot", "defence=atla"), "ATLA is for policies, such as agent=ppo"),
        (("agent=ppo", "env=acrobot", "defence=wocar"), "WocaR is for Q-learners"),
        (("agent=hdqn", "env=acrobot", "defence=wocar"), "WocaR needs agent=dqn"),
        (("agent=dqn", "env=acrobot", "defence=wocar", "agent.dueling=true"), "agent.dueling=true"),
        (("agent=ppo", "env=acrobot", "defence=sa", "agent.recurrent=8"), "agent.recurrent=null"),
        (("agent=dqn", "env=cartpole_frames", "defence=sa", "agent.defence.scale=1"), "scale=1"),
        (("agent=dqn", "env=acrobot", "keep=attacked"), "keep=attacked: needs a defence"),
        (("agent=dqn", "env=acrobot", "+agent.defence=sa"), "agent.defence=sa: expected"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(words, message, rlx, tmp_path):
    result = rlx("train", *words, *SHORT)
    assert result.code == 2 and message in result.err, result
    assert len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def test_a_job_without_a_defence_goes_without_its_keys(rlx):
    line = ("agent=dqn", "env=acrobot", "tuned=none", *SHORT, *TINY["dqn"])
    result = rlx("train", "-m", *line, "defence=none,sa", "agent.defence.eps=0.1,0.2")
    assert result.code == 0, result.err
    runs = Path("outputs/train").glob("*/*")
    assert sorted(read(run).defence for run in runs) == ["", "sa (eps 0.1)", "sa (eps 0.2)"]


def test_every_file_of_conf_is_a_defence():
    for path in Path(conf_dir(), "defence").glob("*.yaml"):
        node = compose("train", "agent=ppo", f"defence={path.stem}").agent
        if path.stem != "none":
            assert isinstance(build(ppo.Config, node, "agent").defence, Defence)
    with pytest.raises(ConfigError, match="expected a subclass"):
        node = compose("train", "agent=dqn", "defence=sa").agent
        node.defence._target_ = "rlx.agents.dqn.DQN"
        build(dqn.Config, node, "agent")


def test_defences_are_told_apart_by_their_names():
    """Not by the keys that only one of them has."""
    words = ("none", "sa", "radial", "radial agent.defence.weight=7")
    configs = [compose("train", "agent=dqn", *f"defence={word}".split()) for word in words]
    labels = differences(configs)
    assert [label.partition(",")[0] for label in labels] == [
        "keep=best",
        "keep=attacked",
        "keep=attacked",
        "keep=attacked",
    ]
    assert [label.partition(", ")[2] for label in labels] == [
        "defence=none",
        "defence=SA",
        "defence=Radial, defence.weight=0.003",
        "defence=Radial, defence.weight=7",
    ]


def test_a_defended_run_of_somebody_else_needs_no_trust(rlx):
    """All classes that conf/ names are rlx's own."""
    run = rlx(
        "train", "agent=dqn", "env=acrobot", "tuned=none", "defence=sa", *SHORT, *TINY["dqn"]
    ).run
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + "# changed\n")
    assert rlx("evaluate", run, "episodes=2").code == 0
    files = Path(conf_dir()).rglob("*.yaml")
    text = "\n".join(file.read_text() for file in files if "hydra" not in file.parts)
    targets = re.findall(r"_target_: (\S+)", text)
    assert "rlx.defences.sa.SA" in targets
    assert all(target.startswith(OWN) for target in targets)


def test_a_users_yaml_in_one_line_is_trusted_as_well(rlx, tmp_path, monkeypatch):
    (tmp_path / "conf" / "defence").mkdir(parents=True)
    (tmp_path / "conf" / "defence" / "own.yaml").write_text(
        "agent:\n  defence: {_target_: own.Own, eps: 1}\n"
    )
    monkeypatch.setattr("rlx.runs.trust.user_dir", lambda: tmp_path / "conf")
    assert "own.Own" in users_imports()


@dataclass(frozen=True)
class Broken(Defence):
    """Somebody's defence: `what` is wrong with it."""

    what: str

    def __post_init__(self):
        if self.what == "made":
            raise KeyError("nothing")

    def learnt(self, decisions):
        if self.what == "raised":
            raise KeyError("nothing")
        return {"None": None, "one seed": decisions.obs[0]}[self.what]

    def penalty(self, decisions):
        return decisions.obs.sum()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "made",
            r"^agent\.defence\._target_=\S+Broken: cannot be made: KeyError \(test_def\S+:\d+",
        ),
        ("raised", r"^agent\.defence: Broken\.learnt raised KeyError \(test_defences\.py:\d+\)"),
        ("None", r"Broken\.learnt returned NoneType; expected a tensor \[2, 6, 4\]$"),
        ("one seed", r"Broken\.learnt returned \[6, 4\]; expected a tensor \[2, 6, 4\]$"),
    ],
)
def test_what_somebodys_defence_does_wrong_is_said_of_it(what, message):
    node = compose("train", "agent=dqn", "env=acrobot").agent
    node.defence = {"_target_": f"{__name__}.Broken", "what": what, **COMMON}
    with pytest.raises((ConfigError, RunError), match=message):
        decisions(build(dqn.Config, node, "agent").defence, values([])).learnt()
    with pytest.raises(RunError, match=r"Broken\.penalty returned \[\]; expected a tensor \[2, 6"):
        decisions(Broken(**COMMON, what=""), values([])).penalty()
