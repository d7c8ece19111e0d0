"""Random choices, drawn rows, settings, memory and ranges: each kind of fault, for all agents."""

import dataclasses
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import AGENTS, compose, small
from gymnasium import spaces
from omegaconf import OmegaConf
from test_agents import Learner

from rlx.agent import OfflineAgent, Spec, Transition
from rlx.agents import bcq, dqn, hdqn, preferences, self_play
from rlx.agents.actenv import ActEnv
from rlx.config import build, load_class
from rlx.data.datasets import Data
from rlx.data.writer import Writer
from rlx.errors import ConfigError
from rlx.evaluation import evaluate_random
from rlx.experiment import env_spec, make_agent, make_env, training_config
from rlx.nn import buffers
from rlx.nn.exploration import exploring
from rlx.nn.rng import Streams, pick, pick_allowed, seed_tensor, uniform
from rlx.nn.schedules import UpdateSchedule
from rlx.rated_memory import RatedMemory
from rlx.replay import Replay
from rlx.runs.run import Run
from rlx.target_cache import TargetCache
from rlx.world_model import Support

CPU = torch.device("cpu")
HOME = {"q_table": ("env=chain",), "self_play": ("env=tic_tac_toe", "env.opponent=self")}
HOME |= {"efficientzero": ("env=catch",)}
"""An env that suits an agent, where it is not CartPole."""
OFFLINE = [name for name in AGENTS if name in ("bc", "bcq")]
ONLINE = [name for name in AGENTS if name not in OFFLINE]


def home(agent: str, *overrides: str):
    """The config of a small agent in an env that suits it."""
    env = HOME.get(agent, ("env=cartpole",))
    return compose("train", f"agent={agent}", *env, *small(agent), *overrides)


# Random choices are even among what the rules allow.


def test_a_pick_among_the_allowed_is_even():
    allowed = torch.tensor(
        [[False, True, False, True, True], [True] * 5, [False] * 4 + [True], [False] * 5]
    )
    even = (torch.arange(3000) + 0.5) / 3000
    counts = torch.stack(
        [pick_allowed(even, one.expand(3000, -1)).bincount(minlength=5) for one in allowed]
    )
    assert counts[0].tolist() == [0, 1000, 0, 1000, 1000] and counts[1].tolist() == [600] * 5
    assert counts[2].tolist() == [0, 0, 0, 0, 3000] and counts[3].tolist() == [3000, 0, 0, 0, 0]


@pytest.mark.parametrize("agent", ["dqn", "hdqn", "ppo"])
def test_random_play_of_a_game_is_legal(agent):
    """Both sides play at random, and each opens half of the games: a return of 0, ± 0.95 a game."""
    config = compose("train", f"agent={agent}", "env=tic_tac_toe", *small(agent))
    policy = make_agent(config.agent, env_spec(config.env), seed_tensor([0]), 2).policy
    played = evaluate_random(
        policy, lambda num_envs: make_env(config.env, num_envs, CPU), 3000, CPU
    )
    assert abs(float(played.returns.mean())) < 4 * 0.95 / 3000**0.5
    assert float((played.returns == 0).double().mean()) == pytest.approx(0.127, abs=0.03)  # draws


GAMERS = ["dqn", "hdqn", "actenv", "efficientzero", "self_play"]


@pytest.mark.parametrize("agent", GAMERS)
def test_exploring_agents_play_legal_moves_evenly(agent):
    all_random = {"learning_starts": 380, "epsilon_start": 1, "epsilon_end": 1}
    all_random |= {"controller_epsilon_start": 1, "controller_epsilon_end": 1}
    overrides = ("env=tic_tac_toe", "env.opponent=self")
    config = compose("train", f"agent={agent}", *overrides, *small(agent, **all_random))
    learner = Learner(config, [3, 5], num_envs=40)
    rules = env_spec(config.env).rules
    for step in range(9):
        t = learner.step()
        assert rules.legal(t.obs).gather(-1, t.action.unsqueeze(-1)).all(), step
        if not step:
            empty = t.action.flatten().bincount(minlength=9)
            assert int(empty.min()) > 0 and int(empty.max()) < 26  # 80 draws of 9


def test_collecting_explores_by_the_rules():
    config = compose("train", "agent=dqn", "env=tic_tac_toe")
    spec = env_spec(config.env)
    board = torch.zeros(1, 4000, 2, 3, 3)
    board[..., 0, 0, :] = 1  # taken
    streams = Streams(seed_tensor([0]), "x")
    scores = dqn.Scores(lambda obs: torch.zeros(*obs.shape[:2], 9))
    deciding = torch.ones(1, 4000, dtype=torch.bool)
    chosen = exploring(1.0, streams, spec.rules)("action", board, scores, deciding)
    counts = chosen.flatten().bincount(minlength=9)
    assert counts[:3].tolist() == [0, 0, 0] and int(counts[3:].min()) > 550  # 4 σ below 667


# Frames: a stack that is drawn is one that was observed.

IMAGES = {
    "obs": ((1, 16, 16), torch.uint8),
    "action": ((), torch.int64),
    "last": ((), torch.bool),
    "reward": ((), torch.float32),
    "discount": ((), torch.float32),
    "next_obs": ((1, 16, 16), torch.uint8),
}


def frame(number: int) -> torch.Tensor:
    """An image [1, 1, 1, 16, 16] that tells its number."""
    image = torch.zeros(1, 1, 1, 16, 16, dtype=torch.uint8)
    image[..., 0, 0] = number % 256
    image[..., 0, 1] = number // 256
    return image


def numbers(stacks: torch.Tensor) -> list[list[int]]:
    """The numbers of the images in stacks [1, B, k, 16, 16]."""
    return (stacks[0, :, :, 0, 0].long() + 256 * stacks[0, :, :, 0, 1].long()).tolist()


def filled(rows: int, capacity: int, cut: bool, stack: int = 4):
    """A ring with frames of `rows` steps, the stack observed at each, and which end an episode."""
    ring = Replay(1, 1, capacity, IMAGES, "cpu", stack)
    generator = torch.Generator().manual_seed(capacity)
    past: list[int] = []
    stacks, ends = [], []
    for number in range(rows):
        past = [*past, number][-stack:]
        stacks.append([past[0]] * (stack - len(past)) + past)
        ends.append(bool(torch.rand((), generator=generator) < 0.06))
        if ends[-1]:
            past = []
        ring.add(
            torch.ones(1, 1, dtype=torch.bool),
            obs=frame(number),
            action=torch.full((1, 1), number),
            last=torch.tensor([[ends[-1]]]),
            reward=torch.zeros(1, 1),
            discount=torch.full((1, 1), 0.0 if ends[-1] and not cut else 0.9),
        )
    return ring, stacks, ends


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(("capacity", "rows"), [(8, 5), (8, 29), (64, 60), (64, 200), (512, 1600)])
def test_stacks_are_those_that_were_observed_and_rows_are_even(capacity, rows, cut):
    ring, stacks, ends = filled(rows, capacity, cut)
    draws = torch.rand(1, 40_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batch = ring.sample(draws)
    assert all(stack == stacks[stack[-1]] for stack in numbers(batch["obs"]))
    drawn = batch["action"][0].tolist()
    following = zip(drawn, numbers(batch["next_obs"]), batch["discount"][0], strict=True)
    assert all(stack == stacks[row + 1] for row, stack, discount in following if discount)
    kept = range(max(0, rows - capacity), rows)
    followed = [row for row in kept if row + 1 < rows and not ends[row]]
    terminal = [row for row in kept if ends[row] and not cut]
    transitions = followed + terminal
    counts = batch["action"][0].bincount(minlength=rows)
    others = set(kept) - set(transitions)
    assert counts[: kept[0]].sum() == 0
    assert sum(int(counts[row]) for row in others) < 0.002 * 40_000
    mean = 40_000 / len(transitions)
    assert all(abs(int(counts[row]) - mean) < 5 * mean**0.5 for row in transitions)


def test_a_ring_of_two_frames_has_one_transition():
    ring, stacks, _ = filled(9, 1, False)
    batch = ring.sample(torch.rand(1, 50))
    assert set(map(tuple, numbers(batch["obs"]))) == {tuple(stacks[7])}
    assert bool((batch["discount"] > 0).all())


def test_efficientzeros_stacks_are_those_that_were_observed():
    sizes = small("efficientzero", buffer_size=12, learning_starts=8, stack=2)
    config = compose("train", "agent=efficientzero", "env=mini_breakout", *sizes).agent
    shown = spaces.Box(0, 255, (2, 4, 4), np.uint8)
    agent = make_agent(config, Spec(shown, spaces.Discrete(3), 99), seed_tensor([0]), 1)
    agent.due = list  # only its memory is tested
    generator = torch.Generator().manual_seed(0)
    previous = 0
    before: dict[int, int] = {}
    for number in range(1, 80):
        ended = bool(torch.rand((), generator=generator) < 0.1)
        before[number] = previous or number
        obs = torch.zeros(1, 1, 2, 4, 4, dtype=torch.uint8)
        obs[:, :, 0] = before[number]
        obs[:, :, 1] = number
        zeros = torch.zeros(1, 1)
        carry = {"policy": torch.full((1, 1, 3), 1 / 3)}
        flags = torch.tensor([[ended]]), zeros.bool()
        agent.update(Transition(obs, zeros.long(), zeros, obs, *flags, carry))
        previous = 0 if ended else number
        slot, weight = agent._sample_slots(torch.rand(1, 200, dtype=torch.float64))
        rows = agent.replay.window(slot, 3)["obs"][0, :, :, :, 0, 0].flatten(0, 1)
        assert all(before[newest] == older for older, newest in rows.tolist())
        drawn = set(rows.unflatten(0, (200, 3))[:, 0, 1].tolist())
        assert drawn == set(range(max(1, number - 11), number + 1)), "the newest twelve"
        assert torch.allclose(weight, torch.ones(()), rtol=1e-5)


# Rows of large memories are drawn evenly.

MANY = 20_000_000


def test_every_one_of_20_million_rows_is_as_likely_as_the_others():
    """Draws from ⌈r · 2^53 / n⌉ · 2^-53 on choose row r: 2^53 / n of them, to within one."""
    rows = torch.randint(1, MANY, (2000,)).tolist()
    begins = [-(-row * 2**53 // MANY) for row in (*rows, MANY - 1)]
    draws = torch.tensor(begins, dtype=torch.float64) * 2.0**-53
    before = torch.tensor([begin - 2 for begin in begins], dtype=torch.float64) * 2.0**-53
    assert pick(draws + 2.0**-52, MANY).tolist() == [*rows, MANY - 1]
    assert pick(before, MANY).tolist() == [row - 1 for row in (*rows, MANY - 1)]
    assert 3 / (2**53 / MANY) < 1e-6, "so most and least likely differ by less than this share"
    last = torch.tensor([(2**53 - 1) * 2.0**-53, 1 - 2.0**-24], dtype=torch.float64)
    for count in (1, 3, 7, MANY, 2**31 + 11, 2**40 - 1):
        assert int(pick(last, count).max()) == count - 1


def test_draws_of_53_bits_are_those_of_24_bits_and_more():
    key = torch.tensor([5, 7])
    fine, coarse = (uniform(key, key, 5000, dtype) for dtype in (torch.float64, torch.float32))
    assert torch.equal((fine * 2**24).floor(), coarse.double() * 2**24)
    assert bool((fine * 2**53 % 1 == 0).all()) and float(fine.min()) >= 0 and float(fine.max()) < 1
    assert len((fine * 2**24 % 1).unique()) == fine.numel(), "the other bits are random too"


def test_a_replay_of_20_million_rows_is_drawn_from_evenly():
    ring = Replay(1, 4, MANY, {"action": ((), torch.uint8)}, "cpu")
    ring.written.fill_(MANY // 4)
    content = torch.arange(ring.slots) % 251
    ring.action.copy_(content.expand(1, 4, -1))
    rows = torch.randint(MANY, (1, 5000))
    drawn = ring.sample((rows.double() + 0.5) / MANY)["action"]
    assert torch.equal(drawn.long(), rows % (MANY // 4) % 251)


def test_priorities_of_many_rows_are_summed_exactly():
    learner = Learner(home("efficientzero"), [0])
    agent, dtypes, drawn = learner.agent, set(), learner.agent._sample_slots

    def spied(draws):
        dtypes.add(draws.dtype)
        return drawn(draws)

    agent._sample_slots = spied
    for _ in range(40):
        learner.step()
    assert dtypes == {torch.float64}
    count = 3_000_000
    agent.priority = torch.full((1, 1, count), 0.1)
    rows = torch.randint(count, (1, 2000))
    assert torch.equal(agent._sample_slots((rows.double() + 0.5) / count)[0], rows)


def test_rated_rows_of_many_are_drawn_evenly(monkeypatch):
    memory = RatedMemory(10, env_spec(compose("train", "env=cartpole").env), 1, seed_tensor([0]))
    memory.slots, memory.fields = MANY, ("episode",)
    for counter in (memory.written, memory.begun):
        counter.fill_(MANY)
    monkeypatch.setattr(memory, "_rows", lambda name, index: index)
    draws = torch.full((1, 3), 0.5, dtype=torch.float64)
    draws[0, 0] = (12_345_677 + 0.5) / MANY  # the rotation, that float32 knows to ± 1
    assert memory.sample(draws)["episode"].tolist() == [
        [(5_000_000 + 12_345_677) % MANY, 15_000_000 + 12_345_677 - MANY]
    ]


@pytest.mark.parametrize("agent", ["dqn", "hdqn", "self_play", "actenv", "preferences"])
def test_agents_draw_rows_by_53_bits(agent, monkeypatch):
    """Draws of rows go through `pick`, and are float64."""
    dtypes = set()

    def spied(draws, count):
        dtypes.add(draws.dtype)
        return pick(draws, count)

    modules = {"actenv": "rlx.rated_memory", "preferences": "rlx.agents.preferences"}
    monkeypatch.setattr(f"{modules.get(agent, 'rlx.replay')}.pick", spied)
    more = {"queries": 8, "first_queries": 4, "round_steps": 16, "segment_steps": 4}
    env = HOME.get(agent, ("env=cartpole",))
    learner = Learner(compose("train", f"agent={agent}", *env, *small(agent, **more)), [3], 4)
    for _ in range(40):
        learner.step()
    assert dtypes == {torch.float64}


# Every key of an agent changes something.

VALUES = {
    "defence": "{_target_:rlx.defences.adversarial.Adversarial,eps:0.5,scale:[1,1,1,1],ramp:0,"
    "steps:1,share:1,gradients:1}",
    "epsilon_steps": 5,
    "controller_epsilon_steps": 5,
    "epsilon_end": 1.0,
    "controller_epsilon_end": 1.0,
    "learning_rate_steps": 5,
    "buffer_size": 60,
    "minibatches": 4,
    "conv": "[[2,8,8]]",
    "target_init": "random",
    "max_grad_norm": 0.01,
    "max_grad_value": 1e-4,
    "goals": "actions",
    "regions": "[{2:[null,0]},{2:[0,null]}]",
    "goal_steps": 1,
    "goal_encoding": "index",
    "target": "sarsa",
    "imitate": "all",
    "activation": "relu",
    "recurrent": 4,
    "bootstrap": "search",
    "decay_after": 3,
    "priority_beta_steps": 5,
    "temperature_steps": 200,
    "warmup": 50,
    "league_every": 5,
    "opening": 9,
    "lookahead": 3,
    "queries": 6,
    "rater_noise": 0.5,
    "gumbel": "null",
    "clip": 0.001,
    "threshold": 0.99,
    "return_low": 5.0,
    "mirror": "true",
    "target_every": 3,
    "reanalyse": 0.9,
    "learning_starts": 60,
    "reward_hidden": "[8]",
    "hidden": "[8]",
    "league": 1,
    "efficientzero.optimizer": "sgd",
    "efficientzero.stack": 1,
}
"""Another value of a key, where that of `another` is none or changes nothing within a few steps."""
PIXELS = ("env=cartpole_frames",)
ROOT = ("agent.gumbel=null", "agent.replay_ratio=0.1")
SHORT = ("env.max_episode_steps=5",)
STACKED = ("env=cartpole_frames", "+env.stack=2", "agent.stack=2")
ASKED = (
    "agent.queries=12",
    "agent.first_queries=4",
    "agent.round_steps=16",
    "agent.segment_steps=4",
)
VIEW: dict[tuple[str, str], tuple[str, ...]] = {
    ("dqn", "conv"): PIXELS,
    ("ppo", "conv"): PIXELS,
    ("a2c", "conv"): PIXELS,
    ("dqn", "batch_norm"): PIXELS,
    ("dqn", "stack"): PIXELS,
    ("dqn", "bootstrap_truncated"): SHORT,
    ("hdqn", "bootstrap_truncated"): SHORT,
    ("hdqn_regions", "bootstrap_truncated"): SHORT,
    ("hdqn", "goals"): ("env=chain",),
    ("hdqn", "goal_encoding"): ("env=chain",),
    ("hdqn", "regions"): ("agent.goals=regions",),
    ("ppo", "initial_std"): ("env=pendulum",),
    ("a2c", "initial_std"): ("env=pendulum",),
    ("preferences", "initial_std"): ("env=pendulum",),
    ("a2c", "clip"): ("agent.epochs=3",),
    ("ppo", "clip"): ("agent.learning_rate=0.01",),
    ("preferences", "clip"): ("agent.learning_rate=0.01", *ASKED),
    ("efficientzero", "stack"): STACKED,
    ("efficientzero", "augment"): ("env=cartpole_frames",),
    ("efficientzero", "one_hot_actions"): ("env=mini_breakout",),
    ("efficientzero", "scale_obs"): ("env=cartpole",),
    ("efficientzero", "cuts_terminate"): ("env=cartpole", *SHORT),
    ("preferences", "rater_noise"): ("env=pendulum", *ASKED),
    ("efficientzero", "off_policy_correction"): ("agent.buffer_size=36",),
    ("efficientzero", "dirichlet_alpha"): ROOT,
    ("efficientzero", "dirichlet_fraction"): ROOT,
    ("efficientzero", "first_visit_by_prior"): (
        *ROOT,
        "agent.learning_rate=0.05",
        "agent.simulations=12",
    ),
    ("efficientzero", "temperature_steps"): ROOT,
    ("bc", "n_steps"): ("agent.q_weight=1",),
    ("bc", "discount"): ("agent.q_weight=1",),
    ("bc", "target_tau"): ("agent.q_weight=1", "agent.target_every=2"),
    ("bc", "target_every"): ("agent.q_weight=1",),
    ("bcq", "target_tau"): ("agent.target_every=2",),
}
"""What else a key needs to matter: images, episodes that are cut, a setting that it belongs to."""
REASONS = {("bcq", "conv"): "of images", ("bc", "conv"): "of images"}
"""Keys that the data set of this test cannot show."""


def another(agent: str, key: str, value: object) -> object:
    """Another value of a key."""
    if f"{agent}.{key}" in VALUES:
        return VALUES[f"{agent}.{key}"]
    if key in VALUES:
        return VALUES[key]
    if key == "optimizer":
        return "rmsprop" if value == "adam" else "adam"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    assert isinstance(value, float), f"agent.{key}: give VALUES another one than {value}"
    return value / 2 if value else 0.25


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """A data set of CartPole's spaces."""
    rng, writer = np.random.default_rng(0), Writer(str(tmp_path_factory.mktemp("logs") / "set"))
    for number in range(20):
        obs, action = rng.uniform(-1, 1, (12, 4)).astype(np.float32), rng.integers(2, size=11)
        writer.add(obs, action, action.astype(np.float32), number % 2 == 0)
    data = writer.close({}, 1, [])
    data.adapt_to(env_spec(compose("train", "env=cartpole").env), {})
    return data


def outcome(config, logs: Data) -> Iterator[list[torch.Tensor]]:
    """What a few steps of an agent give, step by step: a comparison can stop at a difference."""
    if issubclass(load_class(config.agent, "agent", object), OfflineAgent):
        spec = env_spec(config.env)
        agent = make_agent(config.agent, spec, seed_tensor([3]), 1, logs)
        for _ in range(12):
            yield list(agent.learn().values())
        obs = torch.linspace(-1, 1, 400).view(1, 100, 4)
        yield [*agent.state_dict().values(), agent.policy.act(obs, obs[..., 0] > 2, {})[0]]
        return
    learner = Learner(config, [3], 4)
    yield [value.clone() for value in learner.agent.state_dict().values()]
    for _ in range(36):
        yield [learner.step().action, *learner.metrics.values()]
    scores = learner.agent.policy.scores(learner.obs, learner.carry, "action")
    yield [*learner.agent.state_dict().values(), scores]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    """Whether two outcomes are equal to the bit."""
    if [x.shape for x in first] != [x.shape for x in second]:
        return False
    pairs = zip(first, second, strict=True)
    return all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in pairs)


def keys_of(agent: str) -> list[str]:
    return [str(key) for key in compose("train", f"agent={agent}").agent if key != "_target_"]


@pytest.mark.parametrize("agent", AGENTS)
def test_every_key_of_an_agent_changes_something(agent, logs):
    fields = load_class(compose("train", f"agent={agent}").agent, "agent", object).config_type
    assert {field.name for field in dataclasses.fields(fields)} == set(keys_of(agent))
    plain, dead = {}, []
    for key in keys_of(agent):
        if (agent, key) in REASONS:
            continue
        needs = VIEW.get((agent, key), ASKED if agent == "preferences" else ())
        config = home(agent, *needs)
        if needs not in plain:
            plain[needs] = list(outcome(config, logs))
            # Equal settings give equal outcomes.
            assert all(map(same, plain[needs], outcome(config, logs)))
        value = another(agent, key, config.agent[key])
        changed = outcome(home(agent, *needs, f"agent.{key}={value}"), logs)
        if all(map(same, plain[needs], changed)):
            dead.append(f"agent.{key}={value} instead of {config.agent[key]}")
    assert not dead


@pytest.mark.parametrize("kind", [hdqn.Config, self_play.Config, preferences.Config])
def test_retired_keys_are_ignored_in_saved_runs_and_only_there(kind, tmp_path):
    config = compose("train", f"agent={kind.__module__.split('.')[-1]}")
    node = OmegaConf.to_container(config.agent, resolve=True)
    assert kind.retired
    assert not set(kind.retired) & {field.name for field in dataclasses.fields(kind)}
    old = node | dict.fromkeys(kind.retired, 1)
    whole = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    run = Run.create(str(tmp_path), "train", "old", whole | {"agent": old})
    assert training_config(run).agent == node
    with pytest.raises(ConfigError, match="unknown key"):
        build(kind, old, "agent")
    with pytest.raises(ConfigError, match="agent.stacks: unknown key"):
        build(kind, node | {"stacks": 1}, "agent")
    other = OmegaConf.to_container(compose("train", "agent=bcq").agent)
    with pytest.raises(ConfigError, match="agent.dueling: unknown key"):
        build(bcq.Config, other | {"dueling": True}, "agent")


# Before learning starts no agent learns, nor spends time on it, nor says that it has learnt.


def test_the_schedule_waits_for_its_steps():
    schedule = UpdateSchedule(seed_tensor([1, 2]), 4, 0.5, 12)
    assert [schedule.advance() for _ in range(5)] == [0, 0, 2, 2, 2] and schedule.steps == 20


@pytest.mark.parametrize("agent", [name for name in ONLINE if "learning_starts" in keys_of(name)])
def test_nothing_happens_before_learning_starts(agent):
    learner = Learner(home(agent, "agent.learning_starts=60", "agent.replay_ratio=0.25"), [3, 5], 4)
    policy = [value.clone() for value in learner.agent.policy.state_dict().values()]
    streams = learner.agent.minibatch if agent == "efficientzero" else learner.agent.rng
    for step in range(1, 16):
        learner.step()
        begun = step == 15  # 60 steps of a seed
        assert bool(learner.metrics) == begun
        assert bool(streams.counter.sum() > 0) == begun
        unchanged = all(map(torch.equal, policy, learner.agent.policy.state_dict().values()))
        assert unchanged != begun


def test_a_dqn_that_never_began_to_learn_is_told_of(rlx):
    tiny = ("seeds=2", "num_envs=4", "eval_every=100", "eval_episodes=2", "final_episodes=2")
    line = ("train", "agent=dqn", "env=cartpole", "steps=200", *tiny)
    result = rlx(*line, "agent.learning_starts=1000")
    assert result.code == 0 and "nothing was learnt" in result.out + result.err
    result = rlx(*line, "agent.learning_starts=100")
    assert result.code == 0 and "nothing was learnt" not in result.out + result.err


# Memory is asked for before it is taken.

RESPONSIBLE = {"ppo": "rollout_steps", "a2c": "rollout_steps", "preferences": "rollout_steps"}


@pytest.mark.parametrize("agent", [name for name in ONLINE if name != "q_table"])
def test_what_does_not_fit_into_memory_is_refused(agent, monkeypatch):
    key = RESPONSIBLE.get(agent, "buffer_size")
    monkeypatch.setattr(buffers, "free_memory", lambda device: 1e4)
    config = home(agent, f"agent.{key}=4000")
    refused = rf"^agent\.{key}=4000: takes .* GB of memory .* are free"
    with pytest.raises(ConfigError, match=refused):
        make_agent(config.agent, env_spec(config.env), seed_tensor([0]), 4)


def test_each_large_part_is_asked_for_by_its_key(monkeypatch):
    for agent, change, key in (
        ("preferences", "agent.queries=900000000", "queries"),
        ("preferences", "agent.round_steps=9000000000", "round_steps"),
        ("efficientzero", "agent.buffer_size=9000000000", "buffer_size"),
    ):
        config = home(agent, change)
        with pytest.raises(ConfigError, match=rf"^agent\.{key}="):
            make_agent(config.agent, env_spec(config.env), seed_tensor([0]), 4)
    monkeypatch.setattr(buffers, "free_memory", lambda device: 399)
    with pytest.raises(ConfigError, match=r"^agent\.buffer_size=7: takes"):
        TargetCache(2, 10, 3, CPU, "agent.buffer_size=7")  # 2 · 10 · (3 · 4 + 8) bytes
    monkeypatch.setattr(buffers, "free_memory", lambda device: 400)
    cache = TargetCache(2, 10, 3, CPU, "agent.buffer_size=7")
    assert cache.version.unique().tolist() == [-1]


@pytest.mark.parametrize("agent", ["hdqn", "self_play"])
def test_two_learners_must_fit_together(agent, monkeypatch):
    config = home(agent)
    whole = make_agent(config.agent, env_spec(config.env), seed_tensor([0]), 4)
    rings = [module for module in whole.modules() if isinstance(module, Replay)]
    sizes = [sum(getattr(ring, name).nbytes for name in ring.fields) for ring in rings]
    assert len(sizes) == 2
    monkeypatch.setattr(buffers, "free_memory", lambda device: 0.99 * sum(sizes))
    with pytest.raises(ConfigError, match="agent.buffer_size=400: takes"):
        make_agent(config.agent, env_spec(config.env), seed_tensor([0]), 4)


def test_too_much_memory_is_one_line_and_nothing_is_written(rlx, tmp_path):
    for overrides in (
        ("agent=ppo", "agent.rollout_steps=80000000000"),
        ("agent=actenv", "agent.buffer_size=900000000000"),
    ):
        result = rlx("train", "env=cartpole", "seeds=1", *overrides)
        assert result.code == 2 and "are free" in result.err
        assert len(result.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


# What an agent cannot learn from is refused on one line.

KINDS = {
    "vectors": ("env=cartpole",),
    "images": ("env=cartpole_frames",),
    "small images": ("env=mini_breakout",),
    "numbers": ("env=chain",),
    "a game": ("env=tic_tac_toe",),
    "box actions": ("env=pendulum",),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("agent", ONLINE)
def test_an_agent_learns_or_says_why_not(agent, kind):
    config = compose("train", f"agent={agent}", *KINDS[kind], *small(agent))
    try:
        learner = Learner(config, [3, 5], 2)
    except ConfigError as error:
        text = str(error)
        assert text.startswith(("agent: ", "agent.goals=")) and len(text.splitlines()) == 1
        assert "this env has" in text or "needs a game" in text
        return
    for _ in range(40):
        learner.step()
    assert all(bool(value.isfinite().all()) for value in learner.agent.policy.state_dict().values())


@pytest.mark.parametrize("agent", ["hdqn", "actenv", "preferences"])
def test_images_are_refused_by_agents_without_convolutions(agent, rlx):
    result = rlx("train", f"agent={agent}", "env=cartpole_frames", "seeds=1")
    assert result.code == 2 and "not images; this env has Box(0, 255, (1, 84, 84)" in result.err


# Ranges that do not fit are told of.


def rated(low: float, high: float, *returns: float) -> ActEnv:
    """An ActEnv that saw episodes of one step with these returns."""
    config = home("actenv", f"agent.return_low={low}", f"agent.return_scale={high}")
    learner = Learner(config, [3], 1)
    for earned in returns:
        t = learner.step()
        over = torch.ones_like(t.terminated)
        learner.agent.memory.returns.zero_()
        t = dataclasses.replace(t, reward=torch.full_like(t.reward, earned), terminated=over)
        learner.agent.update(t)
    return learner.agent


def test_rates_begin_at_the_low_return():
    memory = RatedMemory(10, env_spec(compose("train", "env=cartpole").env), 1, seed_tensor([0]))
    zeros = {"obs": torch.zeros(1, 1, 4), "next_obs": torch.zeros(1, 1, 4)}
    zeros |= {name: torch.zeros(1, 1, dtype=torch.int64) for name in ("previous", "action")}
    ended = torch.ones(1, 1, dtype=torch.bool)
    for earned in (-500.0, -400.0, -250.0, -100.0, 0.0):
        memory.add(torch.full((1, 1), earned), ended, -400.0, -100.0, **zeros)
    assert memory.rate[0, 0, :5].tolist() == pytest.approx([0, 0, 0.5, 1, 1])


def test_returns_beyond_the_rates_are_told_of():
    assert rated(-300.0, -80.0, -300.0, -80.0, -100.0).warnings() == []
    (warning,) = rated(0.0, 500.0, -212.0, -90.0).warnings()
    assert warning.startswith("agent.return_low=0:") and "set agent.return_low=-212" in warning
    (warning,) = rated(-300.0, -80.0, -75.0).warnings()
    assert "set agent.return_scale=-75" in warning
    config = home("actenv", "agent.return_low=500", "agent.return_scale=500")
    refused = "agent.return_low=500.0: must be below agent.return_scale=500.0"
    with pytest.raises(ConfigError, match=refused):
        build(ActEnv.config_type, config.agent, "agent")


@pytest.mark.parametrize(("reward", "told"), [(1.0, 0), (100.0, 2), (-100.0, 2)])
def test_rewards_beyond_the_supports_are_told_of(reward, told):
    learner = Learner(home("efficientzero", "agent.value_limit=6", "agent.value_bins=13"), [3], 4)
    for _ in range(12):
        t = learner.step()
        learner.agent.update(dataclasses.replace(t, reward=torch.full_like(t.reward, reward)))
    found = learner.agent.warnings()
    names = ["value", "prefix"][:told]
    assert [text.partition("=")[0] for text in found] == [f"agent.{name}_limit" for name in names]
    for text, name, most in zip(found, names, learner.agent.largest[0].tolist(), strict=False):
        # With the settings that it names no reward is cut, and the bins are as narrow as before.
        named = rf"set agent.{name}_limit=(\d+) agent.{name}_bins=(\d+)$"
        limit, bins = re.search(named, text).groups()
        support = Support(float(limit), int(bins), seed_tensor([0]))
        assert support.end() >= most * 0.999
        assert support.limit / (support.bins - 1) <= {"value": 0.5, "prefix": 0.1}[name]


def test_agents_say_nothing_by_default():
    assert Learner(home("dqn"), [3], 4).agent.warnings() == []
