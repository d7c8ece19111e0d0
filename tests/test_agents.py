"""The contract of every agent in conf/agent, and what is particular to each."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import ENVS, PAIRS, apart, small

from rlx.agent import Scores, Transition
from rlx.conf import conf_dir
from rlx.envs.acrobot import Acrobot, tip_height
from rlx.errors import ConfigError
from rlx.experiment import env_spec, make_agent, make_env
from rlx.nn.rng import reset_seeds, seed_tensor
from rlx.nn.seed_axis import take
from rlx.vector_step import vector_step

CPU = torch.device("cpu")


class Learner:
    """An agent and its env, stepped by hand."""

    def __init__(self, config, seeds, num_envs=4, spec=None):
        self.shape = (len(seeds), num_envs)
        keys = seed_tensor(seeds)
        self.agent = make_agent(config.agent, spec or env_spec(config.env), keys, num_envs)
        self.env = make_env(config.env, len(seeds) * num_envs, CPU)
        obs, _ = self.env.reset(seed=reset_seeds(keys, num_envs, "env").flatten().tolist())
        self.obs = obs.unflatten(0, self.shape)
        self.first = torch.ones(self.shape, dtype=torch.bool)
        self.carry = self.agent.policy.initial_carry(num_envs)

    def step(self) -> Transition:
        done = vector_step(self.agent, self.env, self.obs, self.first, self.carry)
        self.obs = done.obs
        self.first = done.first
        self.carry = done.transition.carry
        self.metrics = done.metrics
        return done.transition


@pytest.mark.parametrize(("agent", "env"), PAIRS)
def test_contract(agent, env, composed):
    config = composed("train", f"agent={agent}", f"env={env}", *ENVS[env], *small(agent))
    learner = Learner(config, [3, 5])
    space = learner.env.single_action_space
    policy = learner.agent.policy
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    for _ in range(60):
        transition = learner.step()
        assert transition.action.shape == (*learner.shape, *space.shape)
        assert transition.action.dtype == (torch.float32 if space.shape else torch.int64)
        assert all(value.shape[:2] == learner.shape for value in learner.carry.values())
        assert all(value.shape == (2,) for value in learner.metrics.values())
    after = policy.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    # Every tensor starts with S.
    assert all(value.shape[0] == 2 for value in learner.agent.state_dict().values())
    for head in policy.heads:
        scores = policy.scores(learner.obs, learner.carry, head)
        assert scores.shape[:2] == learner.shape
    greedy, carry = policy.act(learner.obs, learner.first, learner.carry)
    scores = policy.scores(learner.obs, carry, "action")
    # Of frames the carry holds this observation already; EfficientZero's search decides.
    if env != "cartpole_frames" and agent != "efficientzero":
        assert torch.equal(greedy, scores if space.shape else scores.argmax(-1))


CALM = [pair for pair in PAIRS if pair[1] != "mini_breakout"]
"""Pairs without batch normalisation, which over 8 rows makes much of float noise."""
STUDIES = [("corrected", *pair) for pair in CALM if pair != ("actenv", "chain")]
# Act/Env on the chain divides by how far a few one-hot rows deviate, which may be next to 0; for it
# test_actenv.py takes double precision.
STUDIES += [
    ("source", *path.stem.split("-")[:2])
    for path in Path(conf_dir(), "preset").glob("*-*-source.yaml")
]


def calm(agent):
    """Settings under which no step is made of rounding.

    Adam would make steps of the noise of gradients that are 0: in SimSiam's heads, and before batch
    normalisation.
    """
    return {"optimizer": "sgd"} if agent == "efficientzero" else {"batch_norm": False}


def learn_a_little(*learners, times=3):
    """Step them side by side until the first has learnt in a few vector steps.

    So few that rounding cannot have grown to other actions.
    """
    learnt = 0
    while learnt < times:
        before = [parameter.clone() for parameter in learners[0].agent.policy.parameters()]
        for one in learners:
            one.step()
        after = learners[0].agent.policy.parameters()
        learnt += any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.rounding
@pytest.mark.parametrize(("protocol", "agent", "env"), STUDIES)
def test_a_seed_in_the_batch_learns_as_alone(protocol, agent, env, composed):
    config = composed(
        "train",
        f"agent={agent}",
        f"env={env}",
        *ENVS.get(env, ()),
        f"protocol={protocol}",
        *small(agent, n_steps=1, learning_rate=3e-4, learning_rate2=1e-5, **calm(agent)),
    )
    together, alone = Learner(config, [1, 7, 4]), Learner(config, [7])
    before = copy.deepcopy(alone.agent.state_dict())
    learn_a_little(alone, together)
    one, after = take(together.agent, torch.tensor([1])).state_dict(), alone.agent.state_dict()
    assert apart(one, after, before) < 0.01, "measured: 3e-4 at most, with two roundings"
    others = together.agent.policy.state_dict().values()
    assert any(not torch.equal(value[0], value[1]) for value in others)
    policy = [name for name in before if name.startswith("policy.")]
    assert any(not torch.equal(after[name], before[name]) for name in policy)


@pytest.mark.rounding
@pytest.mark.parametrize(("agent", "env"), [pair for pair in CALM if pair[1] != "gym"])
def test_taken_seeds_continue_as_before(agent, env, composed):
    config = composed("train", f"agent={agent}", f"env={env}", *small(agent, **calm(agent)))
    kept, whole = Learner(config, [1, 7, 4]), Learner(config, [1, 7, 4])
    before = copy.deepcopy(whole.agent.state_dict())
    learn_a_little(whole, kept, times=2)
    stay = torch.tensor([2, 0])
    kept.agent = take(kept.agent, stay)
    kept.env.keep((stay.unsqueeze(1) * 4 + torch.arange(4)).flatten())
    kept.shape = (2, 4)
    kept.obs, kept.first = kept.obs[stay], kept.first[stay]
    kept.carry = {name: value[stay] for name, value in kept.carry.items()}
    learn_a_little(whole, kept, times=2)
    one, other = kept.agent.state_dict(), take(whole.agent, stay).state_dict()
    assert apart(one, other, {name: value[stay] for name, value in before.items()}) < 0.01


def feed(agent, steps):
    """Give an hDQN agent hand-made `steps` of one seed and one env copy.

    Returns what its two replays hold, as lists of dicts.
    """

    def cell(value, dtype=torch.int64):
        return torch.tensor([[value]], dtype=dtype)

    clock = 0
    for obs, goal, deciding, action, reward, next_obs, terminated, truncated in steps:
        clock = 1 if deciding else clock + 1
        carry = {
            "goal": cell(goal),
            "action": cell(action),
            "deciding": cell(deciding, torch.bool),
            "clock": cell(clock),
        }
        transition = Transition(
            cell(obs),
            cell(action),
            cell(reward, torch.float32),
            cell(next_obs),
            cell(terminated, torch.bool),
            cell(truncated, torch.bool),
            carry,
        )
        agent.update(transition)

    def rows_of(replay):
        count = int(replay.size[0, 0])
        return [
            {name: getattr(replay, name)[0, 0, i].tolist() for name in replay.fields}
            for i in range(count)
        ]

    return rows_of(agent.meta.replay), rows_of(agent.controller.replay)


# obs, goal, deciding, action, reward, next_obs, terminated, truncated.
# Goal 3 is reached after three steps; goal 5 is cut.
STEPS = [
    (1, 3, True, 1, 0.5, 2, False, False),
    (2, 3, False, 0, 0.5, 2, False, False),
    (2, 3, False, 1, 1.0, 3, False, False),
    (3, 5, True, 1, 2.0, 4, False, True),
    (1, 0, True, 0, 4.0, 0, True, False),
]


def test_hdqn_stores_semi_markov_goals_and_intrinsic_rewards(composed):
    config = composed(
        "train",
        "env=chain",
        "agent.goals=states",
        "agent.discount=0.9",
        "agent.controller_discount=0.5",
        "agent.learning_starts=99",
    )
    agent = make_agent(config.agent, env_spec(config.env), seed_tensor([0]), 1)
    meta, controller = feed(agent, STEPS)
    assert [(m["obs"], m["action"], m["next_obs"], m["last"]) for m in meta] == [
        (1, 3, 3, False),
        (3, 5, 4, True),
        (1, 0, 0, True),
    ]
    assert [m["reward"] for m in meta] == pytest.approx([0.5 + 0.9 * 0.5 + 0.81 * 1.0, 2.0, 4.0])
    # γ^3 after three steps; the time limit bootstraps; the end does not.
    assert [m["discount"] for m in meta] == pytest.approx([0.729, 0.9, 0])
    assert [c["reward"] for c in controller] == [0, 0, 1, 0, 1]
    assert [c["discount"] for c in controller] == [0.5, 0.5, 0, 0.5, 0]
    assert controller[1]["obs"] == [3, 2] and controller[1]["next_obs"] == [3, 2]


def test_hdqn_source_protocol_keeps_the_sources_targets(composed):
    source = composed(
        "train",
        "protocol=source",
        "agent.goals=states",
        "agent.discount=0.9",
        "agent.controller_discount=0.9",
    ).agent
    agent = make_agent(source, env_spec(composed("train", "env=chain").env), seed_tensor([0]), 1)
    meta, controller = feed(agent, STEPS)
    assert [m["reward"] for m in meta] == pytest.approx([2.0, 2.0, 4.0]), "undiscounted"
    # γ once; the time limit counts as an end.
    assert [m["discount"] for m in meta] == pytest.approx([0.9, 0, 0])
    # It bootstraps beyond the goal that was reached.
    assert [c["discount"] for c in controller] == pytest.approx([0.9, 0.9, 0.9, 0, 0])
    encoded = agent.policy.controller[0](torch.tensor([[[3.0, 2.0]]]))
    assert encoded[0, 0].tolist() == [3.0, 0, 0, 1, 0, 0, 0], "the goal as one raw number"


def test_a_chain_of_steps_ends_where_the_goal_ends(composed):
    config = composed(
        "train", "env=chain", "agent.goals=states", "agent.goal_steps=2", "agent.learning_starts=99"
    )
    agent = make_agent(config.agent, env_spec(config.env), seed_tensor([0]), 1)
    _, controller = feed(agent, STEPS)
    last = [c["last"] for c in controller]
    bootstraps = [c["discount"] > 0 for c in controller]
    assert last == [False, True, True, True, True], "running, given up, reached, cut, terminated"
    assert bootstraps == [True, True, False, True, False], "a goal that is given up bootstraps"


def test_learning_that_could_never_start_is_refused(composed):
    config = composed(
        "train", "agent=dqn", "env=cartpole", "agent.buffer_size=110", "agent.learning_starts=105"
    )
    with pytest.raises(ConfigError, match="the replay can hold, 96 transitions"):
        make_agent(config.agent, env_spec(config.env), seed_tensor([0]), 16)


def test_a_goal_is_given_up_after_its_steps(composed):
    config = composed(
        "train", "env=chain", "agent.goals=states", "agent.goal_steps=2", "agent.learning_starts=99"
    )
    agent = make_agent(config.agent, env_spec(config.env), seed_tensor([0]), 1)
    meta, controller = feed(agent, STEPS[:3])
    # After two steps, and when it is reached at last.
    assert [(m["obs"], m["next_obs"]) for m in meta] == [(1, 2), (1, 3)]
    assert [c["reward"] for c in controller] == [0, 0, 1]
    carry = agent.policy.initial_carry(1)
    first = torch.ones(1, 1, dtype=torch.bool)
    obs = torch.zeros(1, 1, dtype=torch.int64)  # never the goal
    decided = []
    for _ in range(6):
        _, carry = agent.policy.act(obs, first, carry | {"goal": torch.full_like(obs, 3)})
        decided.append(bool(carry["deciding"]))
        first = torch.zeros_like(first)
    assert decided == [True, False, True, False, True, False]


def test_goals_as_states_need_discrete_observations(composed):
    config = composed("train", "env=acrobot", "agent.goals=states")
    with pytest.raises(ConfigError, match=r"agent\.goals=states"):
        make_agent(config.agent, env_spec(config.env), seed_tensor([0]), 1)


REGIONS = "agent.regions=[{0:[null,0]},{tip_height:[1,null]},{0:[0,1],4:[-2,2]}]"


def region_agent(composed, *overrides):
    config = composed("train", "agent=hdqn_regions", "env=acrobot", "tuned=none", *overrides)
    return make_agent(config.agent, env_spec(config.env), seed_tensor([0]), 1)


def test_a_region_is_reached_within_all_its_ranges(composed):
    policy = region_agent(composed, REGIONS).policy
    up, down, right = (-1.0, 0.0), (1.0, 0.0), (0.0, 1.0)  # cos and sin of π, 0 and π/2
    # Both angles and the first speed: the tip's height, and which of the three regions hold it.
    cases = {
        (*down, *down, 0.0): (-2, [2]),
        (*down, *up, 2.0): (0, [2]),
        (*down, *up, -2.5): (0, []),
        (*right, *down, 0.0): (0, [0, 2]),  # edges belong to a region
        (*right, *right, 3.0): (1, [0, 1]),
        (*up, *up, 0.0): (0, [0]),
        (*up, *down, 0.0): (2, [0, 1]),
    }
    obs = torch.tensor([[[*case, 0.0] for case in cases]])
    assert tip_height(obs)[0].tolist() == [height for height, _ in cases.values()]
    ignored = torch.zeros(1, len(cases), dtype=torch.int64)
    for goal in range(3):
        reached = policy.reached(torch.full_like(ignored, goal), ignored, obs)
        assert reached[0].tolist() == [goal in holding for _, holding in cases.values()]
    assert policy.scores(obs, policy.initial_carry(len(cases)), "goal").shape == (1, 7, 3)


def test_acrobot_ends_where_the_tip_is_above_one():
    env = Acrobot()
    draws = torch.rand(2000, 4, generator=torch.Generator().manual_seed(0))
    state = (draws - 0.5) * torch.tensor([6.2, 6.2, 8.0, 8.0])
    after, _, terminated = env.transition(state, torch.zeros(2000, dtype=torch.int64), draws)
    height = tip_height(env.observe(after))
    clear = (height - 1).abs() > 1e-5  # cos and sin of a sum are rounded otherwise
    assert clear.sum() > 1900 and 100 < terminated.sum() < 1900
    assert torch.equal((height > 1)[clear], terminated[clear])


def test_a_region_that_holds_already_is_reached_by_staying(composed):
    agent = region_agent(composed, REGIONS, "agent.goal_steps=3")
    hangs = torch.tensor([[[1.0, 0, 1, 0, 0, 0]]])
    first = torch.ones(1, 1, dtype=torch.bool)
    decided = {}
    for goal in (0, 2):
        carry = agent.policy.initial_carry(1)
        begins, decided[goal] = first, []
        for _ in range(7):
            carry |= {"goal": torch.full((1, 1), goal)}
            _, carry = agent.policy.act(hangs, begins, carry)
            carry |= {"goal": torch.full((1, 1), goal)}
            decided[goal].append(bool(carry["deciding"]))
            begins = ~first
    assert decided[2] == [True] * 7
    assert decided[0] == [True, False, False, True, False, False, True], "given up after 3 steps"


BAD_REGIONS = {
    "[]": "agent.regions: is empty",
    "[{}]": "agent.regions[0]={}: expected a component and its range",
    "[{6:[0,1]}]": "agent.regions[0].6: unknown; this env's observations have 0 to 5, tip_height.",
    "[{0:[0,1]},{tip:[0,1]}]": "agent.regions[1].tip: unknown; this env's observations",
    "[{4:[1,1]}]": "agent.regions[0].4=[1.0, 1.0]: the first number must be below the second",
    "[{4:[2,1]}]": "must be below the second",
    "[{4:[nan,1]}]": "expected a finite number",
    "[{4:[1]}]": "agent.regions[0].4=[1.0]: expected [lowest, highest]",
    "[{4:1}]": "agent.regions[0].4=1: expected a list",
    "[{4:[a,1]}]": "agent.regions[0].4=a: expected a number or null",
    "[4]": "agent.regions=4: expected keys with values",
    "[{0:[1.5,null]}]": "is never reached; this component goes from -1 to 1",
    "[{0:[null,-2]}]": "is never reached",
}


@pytest.mark.parametrize("regions", BAD_REGIONS)
def test_bad_regions_are_explained_on_one_line(regions, rlx, tmp_path):
    result = rlx("train", "agent=hdqn_regions", "env=acrobot", f"agent.regions={regions}")
    assert result.code == 2 and BAD_REGIONS[regions] in result.err, result.err
    assert len(result.err.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("agent=hdqn_regions env=chain", "needs Box observations; this env has Discrete(6)"),
        ("agent=hdqn agent.goals=regions env=chain", "needs Box observations of one axis"),
        ("agent=hdqn_regions env=mini_breakout", "needs Box observations of one axis"),
        ("agent=hdqn_regions env=tic_tac_toe", "needs Box observations of one axis"),
        ("agent=hdqn_regions env=cartpole_frames", "not images"),
        ("agent=hdqn_regions env=acrobot env.observe=[0,4] " + REGIONS, "have 0 to 1."),
    ],
)
def test_regions_need_numbers(line, message, rlx, tmp_path):
    result = rlx("train", *line.split(), "tuned=none")
    assert result.code == 2 and message in result.err, result.err
    assert len(result.err.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


def test_exploration_falls_linearly_with_decisions_and_is_uniform(composed):
    config = composed(
        "train", "agent=dqn", "env=acrobot", "agent.epsilon_end=0.1", "agent.epsilon_steps=1000"
    )
    explore = make_agent(config.agent, env_spec(config.env), seed_tensor([0]), 1).explore
    obs, always = torch.zeros(1, 250, 6), torch.ones(1, 250, dtype=torch.bool)

    @Scores
    def second(x):
        return torch.tensor([0.0, 1.0, 0.0]).expand(1, 250, 3)

    epsilons, shares = [], []
    for _ in range(60):
        epsilons.append(float(explore.epsilon()))
        shares.append((explore("action", obs, second, always) != 1).float().mean())
    assert epsilons[:6] == pytest.approx([1, 0.775, 0.55, 0.325, 0.1, 0.1])
    assert float(torch.stack(shares[4:]).mean()) == pytest.approx(0.1 * 2 / 3, abs=0.01)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("agent", "env"), PAIRS)
def test_cuda_learns(agent, env, rlx):
    result = rlx(
        "train",
        f"agent={agent}",
        f"env={env}",
        *ENVS[env],
        "steps=2000",
        "num_envs=8",
        "seeds=2",
        "eval_every=1000",
        "device=cuda",
    )
    assert result.code == 0


@pytest.mark.slow
def test_hdqn_finds_the_detour_on_the_chain(rlx):
    result = rlx(
        "train", "agent=hdqn", "env=chain", "seeds=3", "steps=60000", "final_episodes=4000"
    )
    assert result.summary["return"]["iqm"] >= 0.9 * 0.208


@pytest.mark.slow
def test_hdqn_regions_swings_up(rlx):
    result = rlx("train", "agent=hdqn_regions", "env=acrobot", "seeds=3")
    assert min(result.summary["return"]["per_seed"]) >= -100


@pytest.mark.slow
def test_dqn_balances_the_pole(rlx):
    result = rlx("train", "agent=dqn", "env=cartpole", "seeds=3")
    assert sorted(result.summary["return"]["per_seed"])[1] >= 475


@pytest.mark.slow
def test_hdqn_swings_up(rlx):
    result = rlx("train", "agent=hdqn", "env=acrobot", "seeds=3", "steps=100000")
    assert sorted(result.summary["return"]["per_seed"])[1] >= -100


def test_a_target_with_batch_norm_is_as_slow_as_its_weights(composed):
    config = composed(
        "train",
        "agent=dqn",
        "env=cartpole_frames",
        "agent.batch_norm=true",
        "agent.target_every=1000000",
        *small("dqn"),
    )
    learner = Learner(config, [3, 5])
    before = copy.deepcopy(learner.agent.learner.target.state_dict())
    for _ in range(40):
        learner.step()
    assert int(learner.agent.learner.updates[0]) > 10
    after = learner.agent.learner.target.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.rounding
def test_decisions_on_images_do_not_depend_on_the_batch_nor_change_the_policy(composed):
    images = ("env=cartpole_frames", "agent.batch_norm=true")
    learner = Learner(composed("train", "agent=dqn", *images, *small("dqn")), [3, 5])
    for _ in range(40):
        learner.step()
    policy = learner.agent.policy
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    policy.act(learner.obs, learner.first, learner.carry)
    q = policy.scores(learner.obs, learner.carry, "action")
    alone = policy.scores(learner.obs[:, :1], {"past": learner.carry["past"][:, :1]}, "action")
    torch.testing.assert_close(q[:, :1], alone, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    moments = next(value for name, value in before.items() if name.endswith("mean"))
    assert (moments != 0).any(), "the policy's moments follow those of the network that learns"
