"""Time training and attacks on this machine, beside a plain PyTorch loop and Stable-Baselines3."""

import copy
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from rlx import report
from rlx.config import ConfigError, at_least, build, chosen, command, load_class

if TYPE_CHECKING:
    import torch

    from rlx.agent import Spec
    from rlx.agents.dqn import Config as DQNConfig


@dataclass(frozen=True)
class Config:
    """The keys of bench.yaml."""

    agent: Any
    env: Any
    device: Any
    seeds: list[int]
    """Numbers of seeds to train at once."""
    copies: int
    seconds: float
    attack_batch: int
    eval_env: Any = None
    """Of some envs; of no meaning here."""


@command("bench")
def main(composed: DictConfig) -> float:
    """Returns the best training ratio."""
    config = build(Config, composed, "")
    at_least(config.copies, 1, "copies")

    from rlx import experiment
    from rlx.agents.dqn import DQN
    from rlx.agents.ppo import PPO

    device = experiment.setup_device(config.device)
    if chosen("env") == "car_racing":
        return drawing(config)
    spec = experiment.env_spec(config.env)
    if chosen("agent") == "efficientzero":
        return planning(config, spec, device)
    kind: Any = load_class(config.agent, "agent", object)
    env_id = f"{config.env['_target_'].rpartition('.')[2]}-v1"  # Gymnasium's own, of the same name
    if kind not in (DQN, PPO) or env_id not in ("Acrobot-v1", "CartPole-v1"):
        raise ConfigError(
            "bench: compares agent=dqn, ppo or a2c on env=acrobot or cartpole, and env=car_racing with Gymnasium's; "
            "it times agent=efficientzero."
        )
    agent = build(kind.config_type, config.agent, "agent")
    report.start(
        agent=f"{chosen('agent')} on {env_id}, network {agent.hidden}",
        device=f"{device}, {config.device['threads']} thread(s); the others on the CPU, one thread",
    )
    rows: list[list[Any]] = []
    if kind is DQN:
        rows.append(["training, plain PyTorch loop, 1 env, 1 seed", plain_training(agent, spec, env_id, config.seconds)])
    if importlib.util.find_spec("stable_baselines3"):
        copies = 1 if kind is DQN else config.copies
        speed = sb3_training(chosen("agent"), agent, env_id, copies, config.seconds)
        rows.append([f"training, SB3, {copies} env(s), 1 seed", speed])
    for seeds in config.seeds:
        speed = rlx_training(config, spec, seeds, device)
        rows.append([f"training, rlx, {seeds} seed(s) × {config.copies} env copies", speed])
    table = [[what, f"{speed:,.0f}", f"{speed / rows[0][1]:.2g}"] for what, speed in rows]
    if kind is DQN and env_id == "Acrobot-v1":
        single = plain_attack(spec, config.seconds)
        batched = rlx_attack(spec, max(config.seeds), config.attack_batch, config.seconds, device)
        table.append(["FGSM on two heads, plain loop, one observation at a time", f"{single:,.0f}", "1"])
        what = f"FGSM on two heads, rlx, {max(config.seeds)} seeds × {config.attack_batch:,} copies"
        table.append([what, f"{batched:,.0f}", f"{batched / single:.3g}"])
    report.table("Environment steps per second, summed over seeds", ["what", "steps/s", "ratio"], table)
    return max(speed for _, speed in rows) / rows[0][1]


def timed(step: Callable[[], int], seconds: float) -> float:
    """Env steps per second of repeated `step()`s, each of which returns how many it made; a fifth of the time is warm-up."""
    end = time.perf_counter() + seconds / 5
    while time.perf_counter() < end:
        step()
    count, began = 0, time.perf_counter()
    while time.perf_counter() < began + seconds:
        count += step()
    return count / (time.perf_counter() - began)


def rlx_training(config: Config, spec: "Spec", seeds: int, device: "torch.device") -> float:
    """rlx's own agent and env."""
    import torch

    from rlx import experiment
    from rlx.agent import Transition
    from rlx.rng import seed_tensor

    shape = (seeds, config.copies)
    agent = experiment.make_agent(config.agent, spec, seed_tensor(range(seeds), device), config.copies)
    env = experiment.make_env(config.env, seeds * config.copies, device)
    obs, carry = env.reset(seed=0)[0].unflatten(0, shape), agent.policy.initial_carry(config.copies)
    first = torch.ones(shape, dtype=torch.bool, device=device)

    def step() -> int:
        nonlocal obs, carry, first
        action, carry = agent.act(obs, first, carry)
        result = env.step(action.flatten(0, 1))
        next_obs, reward, terminated, truncated, final = (x.unflatten(0, shape) for x in (*result[:4], result[4]["final_obs"]))
        agent.update(Transition(obs, action, reward, final, terminated, truncated, carry))
        obs, first = next_obs, terminated | truncated
        if device.type == "cuda":
            torch.cuda.synchronize()
        return seeds * config.copies

    return timed(step, config.seconds)


def planning(config: Config, spec: "Spec", device: "torch.device") -> float:
    """EfficientZero's times for a learner step, its parts and a decision; returns learner steps per second."""
    rows = [[str(seeds), *planned(config, spec, seeds, device)] for seeds in config.seeds]
    report.start(device=f"{device}, {config.device['threads']} thread(s), {config.copies} env copies per seed")
    header = ["seeds", "learner step", "search", "value targets", "training", "act", "env steps/s per seed"]
    report.table("EfficientZero, milliseconds", header, rows)
    return 1e3 / rows[-1][1]


def planned(config: Config, spec: "Spec", seeds: int, device: "torch.device") -> list[Any]:
    """[ms of a learner step, of its searches, its value targets and the rest, of a vector step's decisions, env steps/s per seed]."""
    import torch

    from rlx import experiment
    from rlx.agent import Transition
    from rlx.agents.efficientzero import EfficientZero
    from rlx.rng import seed_tensor

    shape, spent = (seeds, config.copies), dict[str, float]()
    agent: Any = experiment.make_agent(config.agent, spec, seed_tensor(range(seeds), device), config.copies)
    assert isinstance(agent, EfficientZero)
    env = experiment.make_env(config.env, seeds * config.copies, device)
    obs, first = env.reset(seed=0)[0].unflatten(0, shape), torch.zeros(shape, dtype=torch.bool, device=device)
    for _ in range(-(-agent.config.learning_starts // config.copies)):
        action, carry = agent.act(obs, first, {})
        result = env.step(action.flatten(0, 1))
        next_obs, reward, terminated, truncated, final = (x.unflatten(0, shape) for x in (*result[:4], result[4]["final_obs"]))
        agent.update(Transition(obs, action, reward, final, terminated, truncated, carry))
        obs = next_obs

    def clocked(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed_work(*args: Any) -> Any:
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            result = work(*args)
            if device.type == "cuda":
                torch.cuda.synchronize()
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - began
            return result

        return timed_work

    def milliseconds(work: Callable[[], Any]) -> list[float]:
        work()
        spent.clear()
        count = 0
        while spent.get("all", 0.0) < config.seconds:
            work()
            count += 1
        return [1e3 * value / count for value in spent.values()]

    for name in ("value_targets", "policy_targets"):
        setattr(agent, name, clocked(name, getattr(agent, name)))
    values, search, learn = milliseconds(clocked("all", agent.learn))
    (act,) = milliseconds(clocked("all", lambda: agent.act(obs, first, {})))
    rate = 1e3 / (act / config.copies + learn * agent.config.replay_ratio)
    return [learn, search, values, learn - search - values, act, rate]


def drawing(config: Config) -> float:
    """CarRacing's frames per second, one process and several; returns the gray picture's ratio to Gymnasium's."""
    import gymnasium

    from rlx import experiment
    from rlx.envs.car_racing import CarRacing

    rng = np.random.default_rng(0)

    def driven(env: Any) -> float:
        env.reset(seed=0)

        def step() -> int:
            action = rng.uniform([-0.5, 0, 0], [0.5, 1, 0.2]).astype(np.float32)
            for _ in range(10):
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset()
            return 10

        return timed(step, config.seconds)

    def shared(workers: int) -> float:
        env = experiment.make_env({**config.env, "workers": workers}, config.copies, "cpu")
        env.reset(seed=0)

        def step() -> int:
            env.step(np.full(config.copies, 1))
            return config.copies * config.env["kwargs"]["repeat"]

        return timed(step, config.seconds)

    rows: list[tuple[str, float]] = [("Gymnasium, 1 env", driven(gymnasium.make("CarRacing-v3")))]
    rows += [(f"rlx, 1 env, {what}", driven(CarRacing(continuous=True, gray=gray))) for what, gray in (("gray", True), ("colour", False))]
    repeat = config.env["kwargs"]["repeat"]
    rows += [(f"rlx, {config.copies} env copies, {repeat} frames a step, {n} process(es)", shared(n)) for n in (1, 2)]
    table = [[what, f"{speed:,.0f}", f"{speed / rows[0][1]:.3g}"] for what, speed in rows]
    report.table("CarRacing, frames per second", ["what", "frames/s", "ratio"], table)
    return rows[1][1] / rows[0][1]


def plain_training(config: "DQNConfig", spec: "Spec", env_id: str, seconds: float) -> float:
    """The same DQN as one would write it down: Gymnasium's env, nn.Linear, torch.optim, a NumPy replay."""
    import gymnasium
    import torch
    from torch import nn

    from rlx.encoders import obs_features

    env = gymnasium.make(env_id)
    features, choices = obs_features(spec.observation_space), spec.actions
    network = _plain_network(features, config.hidden, choices)
    target = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), config.learning_rate)
    size = config.buffer_size
    observations, next_observations = np.zeros((size, features), np.float32), np.zeros((size, features), np.float32)
    actions, rewards, terminals = np.zeros(size, np.int64), np.zeros(size, np.float32), np.zeros(size, np.float32)
    rng = np.random.default_rng(0)
    obs, _ = env.reset(seed=0)
    stored = 0

    def step() -> int:
        nonlocal obs, stored
        if rng.random() < config.epsilon_end:
            action = int(rng.integers(choices))
        else:
            with torch.no_grad():
                action = int(network(torch.as_tensor(obs)).argmax())
        following, reward, terminated, truncated, _ = env.step(action)
        at = stored % size
        observations[at], next_observations[at], actions[at], rewards[at], terminals[at] = obs, following, action, reward, terminated
        stored += 1
        obs = env.reset()[0] if terminated or truncated else following
        if stored >= config.batch_size:
            index = rng.integers(min(stored, size), size=config.batch_size)
            o, n, a, r, t = (torch.from_numpy(x[index]) for x in (observations, next_observations, actions, rewards, terminals))
            with torch.no_grad():
                goal = r + config.discount * (1 - t) * target(n).amax(1)
            loss = nn.functional.smooth_l1_loss(network(o).gather(1, a.unsqueeze(1)).squeeze(1), goal)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(target.parameters(), network.parameters(), strict=True):
                    slow.lerp_(fast, config.target_tau)
        return 1

    return timed(step, seconds)


def sb3_training(name: str, config: Any, env_id: str, copies: int, seconds: float) -> float:
    """Stable-Baselines3's agent of the same name and sizes on `copies` of Gymnasium's env; its DQN makes one update per step."""
    import stable_baselines3  # type: ignore[import-not-found]
    from stable_baselines3.common.env_util import make_vec_env  # type: ignore[import-not-found]

    env = make_vec_env(env_id, copies)
    common = {"learning_rate": config.learning_rate, "gamma": config.discount, "device": "cpu"}
    common["policy_kwargs"] = {"net_arch": list(config.hidden)}
    steps = 200
    model: Any
    if name == "dqn":
        model = stable_baselines3.DQN(
            "MlpPolicy", env, buffer_size=config.buffer_size, learning_starts=64, batch_size=config.batch_size, tau=config.target_tau,
            target_update_interval=1, train_freq=1, gradient_steps=1, **common,
        )  # fmt: skip
    else:
        common |= {"n_steps": config.rollout_steps, "gae_lambda": config.gae_lambda, "ent_coef": config.entropy_coefficient}
        steps = config.rollout_steps * copies
        if name == "ppo":
            batch = {"batch_size": steps // config.minibatches, "n_epochs": config.epochs}
            model = stable_baselines3.PPO("MlpPolicy", env, **batch, **common)
        else:
            model = stable_baselines3.A2C("MlpPolicy", env, **common)
            steps *= 10

    def step() -> int:
        model.learn(steps, reset_num_timesteps=False)
        return steps

    return timed(step, seconds)


def plain_attack(spec: "Spec", seconds: float) -> float:
    """FGSM on a goal head and on an action head given the goal, one observation at a time."""
    import torch
    from torch import nn

    meta, controller = _plain_network(6, [128, 128], 3), _plain_network(9, [128, 128], 3)
    high = torch.as_tensor(spec.observation_space.high)  # type: ignore[attr-defined]
    obs = torch.randn(6)

    def fgsm(scores: Callable[[Any], Any]) -> Any:
        at = obs.clone().requires_grad_()
        q = scores(at).unsqueeze(0)
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(q, q.argmax(1)), at)
        return (at.detach() + 0.01 * high * slope.sign()).clamp(-high, high)

    def step() -> int:
        seen = fgsm(meta)
        with torch.no_grad():
            goal = meta(seen).argmax()
        one_hot = nn.functional.one_hot(goal, 3).float()
        seen = fgsm(lambda x: controller(torch.cat([one_hot, x])))
        with torch.no_grad():
            controller(torch.cat([one_hot, seen])).argmax()
        return 1

    return timed(step, seconds)


def rlx_attack(spec: "Spec", seeds: int, batch: int, seconds: float, device: "torch.device") -> float:
    """The same networks and decisions in one batch of seeds × copies."""
    import torch

    from rlx.agent import Scores
    from rlx.attack import Budget
    from rlx.attacks.fgsm import FGSM
    from rlx.networks import MLP
    from rlx.rng import Streams, seed_tensor

    keys = seed_tensor(range(seeds), device)
    meta, controller = MLP(6, [128, 128], 3, Streams(keys, "goal")), MLP(9, [128, 128], 3, Streams(keys, "action"))
    high = torch.as_tensor(spec.observation_space.high, device=device)  # type: ignore[attr-defined]
    obs = Streams(keys, "obs").uniform(batch, 6) * 2 - 1
    attack = FGSM(loss="ce", target=None)
    budget = Budget(torch.full_like(obs, 0.01) * high, -high, high)

    def choose(scores: Scores) -> Any:
        seen = attack.perturb(scores, obs, budget, lambda count: obs)
        with torch.no_grad():
            return scores(seen).argmax(-1)

    def step() -> int:
        one_hot = torch.nn.functional.one_hot(choose(Scores(meta)), 3).float()
        choose(Scores(lambda x: controller(torch.cat([one_hot, x], -1))))
        if device.type == "cuda":
            torch.cuda.synchronize()
        return seeds * batch

    return timed(step, seconds)


def _plain_network(inputs: int, hidden: list[int], outputs: int) -> Any:
    from torch import nn

    sizes = [inputs, *hidden]
    layers: list[Any] = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))
