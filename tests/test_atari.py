"""Atari copies are ale-py's own games, and a copy can stop and go on anywhere."""

import gymnasium
import numpy as np
import pytest
import torch
from conftest import TINY, small
from test_resume import fingerprint

from rlx.envs import atari
from rlx.errors import ConfigError
from rlx.experiment import eval_env_config, make_env
from rlx.nn.seed_axis import concatenated

ale_py = pytest.importorskip("ale_py")
RAW = ("env.noops=1", "env.fire=false", "env.life_loss=false", "env.clip_rewards=false")
STICKY = "env.repeat_action_probability=0.25"


@pytest.fixture
def make(composed):
    """make("pong", 4, "env.noops=1") is an env of four copies."""

    def build(game, num_envs, *overrides):
        config = composed("train", "env=atari", f"env.game={game}", *overrides)
        return make_env(config.env, num_envs, "cpu")

    return build


def play(env, steps, seed=0):
    """Obs, reward, terminated, truncated, final_obs [T, B, …] of random actions."""
    rng = np.random.default_rng(seed)
    actions = env.single_action_space.n
    rows = []
    for _ in range(steps):
        *columns, info = env.step(rng.integers(actions, size=env.num_envs))
        rows.append((*columns, info["final_obs"]))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def alike(first, second):
    """The same, but for pixels that round to a neighbouring level in a batch of another size."""
    pairs = [(a.double(), b.double()) for a, b in zip(first, second, strict=True)]
    return all((a - b).abs().max() <= (1 if a.dim() > 1 else 0) for a, b in pairs)


def shrunk(screen):
    """A screen [210, 160] as [84, 84] means over equal areas; in colour [3, 84, 84]."""
    if screen.ndim == 3:
        return np.stack([shrunk(channel) for channel in np.moveaxis(screen, -1, 0)])
    for _ in range(2):
        edges = np.linspace(0, len(screen), 85)
        covered = np.diff(np.clip(edges[:, None] - np.arange(len(screen)), 0, 1), axis=0)
        screen = (covered * 84 / len(screen) @ screen).T
    return screen


GAMES = [("Pong", True), ("Breakout", True), ("MsPacman", False)]


@pytest.mark.parametrize(("game", "gray"), GAMES)
def test_images_scores_and_lives_are_those_of_ales_single_env(game, gray, make):
    gymnasium.register_envs(ale_py)
    theirs = gymnasium.make(
        f"ALE/{game}-v5",
        frameskip=1,
        repeat_action_probability=0.0,
        obs_type="grayscale" if gray else "rgb",
    )
    name = {"MsPacman": "ms_pacman"}.get(game, game.lower())
    mine = make(name, 1, *RAW, f"env.gray={str(gray).lower()}")
    obs, _ = mine.reset(seed=3)
    theirs.reset(seed=3)
    theirs.step(0)
    screens = [theirs.step(0)[0]] * 2
    lives = [theirs.unwrapped.ale.lives()]
    score = 0.0
    over = False
    rng = np.random.default_rng(0)
    while not over:
        bright = np.maximum(*screens[-2:]).astype(float)
        np.testing.assert_allclose(obs[0].squeeze(0).float(), shrunk(bright), atol=0.501)
        action = rng.integers(theirs.action_space.n)
        expected = 0.0
        obs, reward, terminated, truncated, _ = mine.step(np.array([action]))
        for _ in range(4):
            if not over:
                screen, r, over, _, _ = theirs.step(action)
                screens.append(screen)
                expected += r
        assert (float(reward), bool(terminated), bool(truncated)) == (expected, over, False)
        lives.append(theirs.unwrapped.ale.lives())
        score += expected
    assert score != 0 and (game == "Pong" or set(lives) >= {0, 1, 2})


def test_contract(make):
    env = make("breakout", 3, "env.max_episode_steps=90")
    first = env.reset(seed=[1, 2, 1])[0]
    assert torch.equal(first[0], first[2]) and env.max_episode_steps == 90
    obs, reward, terminated, truncated, final = play(env, 180)
    assert not (terminated & truncated).any() and reward.dtype == torch.float32
    assert final.shape == (180, 3, 1, 84, 84)
    # 90 decisions do not end five lives.
    assert terminated.any() and truncated.sum() + terminated[[89, 179]].sum() == 6
    assert torch.equal(obs[:89], final[:89]), "the game goes on when a life is lost"
    assert not torch.equal(obs[89], final[89])
    again = make("breakout", 3, "env.max_episode_steps=90")
    again.reset(seed=[1, 2, 1])
    assert same(play(again, 180), (obs, reward, terminated, truncated, final))
    assert not torch.equal(env.reset(seed=7)[0], first)


def test_lives_and_clipping_are_the_learners_alone(make, composed):
    train, test = make("ms_pacman", 2), make("ms_pacman", 2, *RAW[2:])
    train.reset(seed=0), test.reset(seed=0)
    obs, clipped, lost, _, _ = play(train, 250)
    same_obs, reward, over, _, _ = play(test, 250)
    until = int(over.any(1).float().argmax()) if over.any() else 250
    assert torch.equal(obs[:until], same_obs[:until])
    assert torch.equal(clipped[:until], reward[:until].clamp(-1, 1))
    assert reward.max() >= 10 and lost[:until].any() and not over[:until].any()
    config = composed("train", "env=pong")
    assert config.env.life_loss and config.env.clip_rewards
    assert not eval_env_config(config)["life_loss"] and not eval_env_config(config)["clip_rewards"]


@pytest.mark.parametrize("steps", [17, 60])
def test_a_saved_state_goes_on_exactly(steps, make):
    overrides = ("breakout", 3, STICKY, "env.max_episode_steps=70")
    env, other = make(*overrides), make(*overrides, "env.threads=2")
    env.reset(seed=5), other.reset(seed=99)
    terminated = play(env, steps)[2]
    assert terminated.any() == (steps == 60)  # within a life, behind a lost one
    state = env.state_dict()
    filled = concatenated(state, state | {"games": state["games"][:, :0]})
    assert filled["games"].shape == (6, *state["games"].shape[1:])
    longer = {name: value.clone() for name, value in state.items()}
    longer["games"] = torch.cat([state["games"], state["games"].new_zeros(3, 9)], 1)
    later = play(env, 120, seed=1)
    other.load_state_dict(longer)
    assert same(later, play(other, 120, seed=1))
    env.load_state_dict(state)
    env.keep(torch.tensor([2, 0]))
    rng = np.random.default_rng(1)
    for t in range(120):
        row = env.step(rng.integers(4, size=3)[[2, 0]])
        assert alike((*row[:4], row[4]["final_obs"]), [column[t, [2, 0]] for column in later])


# Tetris reads what the emulator has left on the data bus.
@pytest.mark.parametrize("game", ["pong", "tetris"])
def test_threads_change_nothing(game, make):
    one = make(game, 5, STICKY, "env.noops=1")
    three = make(game, 5, STICKY, "env.noops=1", "env.threads=3")
    assert torch.equal(one.reset(seed=0)[0], three.reset(seed=0)[0])
    assert same(play(one, 40), play(three, 40))


def test_another_process_goes_on_exactly(make):
    env = make("tetris", 3, "env.noops=3")
    env.reset(seed=0)
    play(env, 5)
    state, later = env.state_dict(), play(env, 40)
    atari._emulator.cache_clear()
    other = make("tetris", 3, "env.noops=3", "env.threads=2")
    other.load_state_dict(state)
    assert same(later, play(other, 40))


def test_fire_serves_and_sticky_actions_stick(make):
    lives = {}
    for fire in ("true", "false"):
        env = make("breakout", 1, f"env.fire={fire}")
        env.reset(seed=0)
        lives[fire] = sum(int(env.step(np.array([0]))[2]) for _ in range(130))
    assert lives == {"true": 5, "false": 0}
    stuck, free = make("pong", 1, "env.repeat_action_probability=1"), make("pong", 1)
    stuck.reset(seed=0), free.reset(seed=0)
    for _ in range(30):
        assert torch.equal(stuck.step(np.array([2]))[0], free.step(np.array([0]))[0])


def test_names_of_games(make):
    messages = {
        "pnog": "Did you mean 'pong'",
        "combat": "not a game for one player",
        "tic_tac_toe_3d": "restore this game exactly",
    }
    for game, message in messages.items():
        with pytest.raises(ConfigError, match=message):
            make(game, 1)


def test_training_resumes_exactly(rlx):
    arguments = ["train", "agent=dqn", "env=breakout", "+eval_env.max_episode_steps=20"]
    arguments += [*TINY, *small("dqn", replay_ratio=0.02), "agent.conv=[[4,8,8]]", "seeds=2"]
    arguments += ["steps=400", "eval_every=200", "checkpoint_every=200"]
    arguments += ["eval_episodes=1", "final_episodes=1"]
    whole = rlx(*arguments)
    assert whole.code == 0, whole.err
    shorter = rlx(*arguments, "steps=200")
    assert rlx("resume", shorter.run, "steps=400").code == 0
    assert fingerprint(shorter.run) == fingerprint(whole.run)


def test_the_benchmark_runs_its_games_and_compares_them(rlx):
    sizes = "latent=4 lstm=8 head=8 projection=8 value_bins=21 prefix_bins=21 simulations=2"
    sizes += " batch_size=4 buffer_size=100 learning_starts=20"
    short = "steps=40 num_envs=2 seeds=2 eval_every=40 eval_episodes=1 final_episodes=1"
    short += " env.max_episode_steps=20 eval_env.max_episode_steps=20"
    arguments = [*short.split(), *(f"agent.{key}" for key in f"{sizes} replay_ratio=0.1".split())]
    result = rlx("train", "experiment=atari100k", "env.game=pong,breakout", *arguments)
    assert result.code == 0, result.err
    for expected in ("breakout │     2 │", "pong │     2 │", "2 of 26 games"):
        assert expected in result.out
    runs = [f"outputs/train/efficientzero-{game}" for game in ("pong", "breakout")]
    again = rlx("report", *runs)
    assert again.code == 0 and "published 7.74, 2 of 26 games" in again.out
