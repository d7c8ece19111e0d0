"""The board games keep the rules, and their opponents are as strong as they say."""

from functools import cache

import gymnasium
import pytest
import torch

from rlx.envs import tic_tac_toe
from rlx.envs.batched import BatchedEnv
from rlx.envs.connect_four import DEPTH, WIN, ConnectFour
from rlx.envs.tic_tac_toe import TicTacToe, worst_result
from rlx.errors import ConfigError
from rlx.experiment import make_env

GAMES = {"tic_tac_toe": TicTacToe, "connect_four": ConnectFour}
MATCHES = [(name, opponent) for name, kind in GAMES.items() for opponent in kind.opponents]
COMPASS = ((0, 1), (1, 0), (1, 1), (1, -1))
CELLS = {
    name: {(r, c) for r in range(kind.rows) for c in range(kind.columns)}
    for name, kind in GAMES.items()
}
LINES = {
    name: [
        line
        for r, c in sorted(CELLS[name])
        for down, right in COMPASS
        if (line := frozenset((r + i * down, c + i * right) for i in range(kind.in_a_row)))
        <= CELLS[name]
    ]
    for name, kind in GAMES.items()
}


def wins(name, stones) -> bool:
    return any(line <= stones for line in LINES[name])


def landing(name, taken, action):
    """The cell where an action's stone comes to lie; None where it may not."""
    if name == "tic_tac_toe":
        cell = divmod(action, 3)
        return None if cell in taken else cell
    return next(((r, action) for r in reversed(range(6)) if (r, action) not in taken), None)


def following(name, own, other):
    """(action, own stones with it) of each legal action."""
    cells = (
        (action, landing(name, own | other, action))
        for action in range(9 if name == "tic_tac_toe" else 7)
    )
    return [(action, own | {cell}) for action, cell in cells if cell is not None]


def result_of(name, cell, own, other):
    """What a move into `cell` is worth to the mover of the stones `own`; None: the game goes on."""
    if cell is None:
        return -1
    if wins(name, own):
        return 1
    return 0 if own | other == CELLS[name] else None


def sets(obs):
    """The two players' stones in an observation [2, rows, columns], as sets of cells."""
    return tuple(frozenset(map(tuple, plane.nonzero().tolist())) for plane in obs)


def start(name, opponent, num_envs, seed=0):
    env = BatchedEnv(GAMES[name](opponent), num_envs)
    return env, env.reset(seed=seed)[0]


def random_actions(name, obs, generator):
    return torch.multinomial(GAMES[name].legal(obs).float(), 1, generator=generator).squeeze(1)


def positions(name, count, seed=0):
    """States [count, 2] of games under way, met in random play."""
    env, obs = start(name, "self", count, seed)
    draws = torch.Generator().manual_seed(seed)
    plies = torch.arange(count) % (8 if name == "tic_tac_toe" else 26)
    state = env.state
    for ply in range(int(plies.max())):
        obs = env.step(random_actions(name, obs, draws))[0]
        state = torch.where((plies > ply).unsqueeze(1), env.state, state)
    return state


def test_registered_and_configured(composed):
    for name, id in (("tic_tac_toe", "rlx/TicTacToe-v0"), ("connect_four", "rlx/ConnectFour-v0")):
        obs, _ = gymnasium.make_vec(id, num_envs=3, opponent="self").unwrapped.reset(seed=0)
        assert obs.shape[0] == 3 and not obs.any()
        env = make_env(composed("train", f"env={name}").env, 2, "cpu")
        assert env.dynamics == GAMES[name]()
        assert env.max_episode_steps == GAMES[name].max_episode_steps
        assert env.single_observation_space.shape == obs.shape[1:] and env.reward_threshold == 0.9
    with pytest.raises(ConfigError, match="Did you mean 'minimax'"):
        TicTacToe("minmax")
    message = r"env.opponent=minimax: unknown\. Choose from: random, search, self"
    with pytest.raises(ConfigError, match=message):
        ConnectFour("minimax")


@pytest.mark.parametrize("name", GAMES)
def test_self_play_keeps_the_rules(name):
    num_envs = 1500
    env, obs = start(name, "self", num_envs)
    draws = torch.Generator().manual_seed(0)
    games = [(frozenset(), frozenset())] * num_envs
    ends = {1: 0, 0: 0, -1: 0}
    for _ in range(45):
        legal, after = GAMES[name].legal(obs), GAMES[name].after(obs)
        any_actions = torch.randint(legal.shape[1], (num_envs,), generator=draws)
        reckless = torch.rand(num_envs, generator=draws) < 0.03
        actions = torch.where(reckless, any_actions, random_actions(name, obs, draws))
        obs, reward, terminated, truncated, info = env.step(actions)
        assert not truncated.any()
        for i, (own, other) in enumerate(games):
            cell = landing(name, own | other, int(actions[i]))
            cells = [landing(name, own | other, action) for action in range(legal.shape[1])]
            assert legal[i].tolist() == [cell is not None for cell in cells]
            own = own | {cell} if cell else own
            assert sets(after[i, int(actions[i])]) == (own, other)
            result = result_of(name, cell, own, other)
            games[i] = (other, own) if result is None else (frozenset(), frozenset())
            assert float(reward[i]) == (result or 0)
            assert bool(terminated[i]) == (result is not None)
            assert sets(info["final_obs"][i]) == (other, own) and sets(obs[i]) == games[i]
            if result is not None:
                ends[result] += 1
    assert sum(ends.values()) > 2000 and min(ends.values()) > 0, ends


@pytest.mark.parametrize("name", GAMES)
def test_lines_are_found_on_any_pattern_of_stones(name):
    kind = GAMES[name]
    game = kind("self")
    bits = game.cells(torch.device("cpu"))
    patterns = torch.rand(4000, len(bits), generator=torch.Generator().manual_seed(0)) < 0.4
    lines = torch.tensor(
        [
            [(r, c) in line for r in range(kind.rows) for c in range(kind.columns)]
            for line in LINES[name]
        ]
    )
    patterns = torch.cat([patterns, lines])
    found = game.won((patterns.long() << bits).sum(1))
    expected = [wins(name, sets(p.view(1, kind.rows, kind.columns))[0]) for p in patterns]
    assert found.tolist() == expected and found[-len(lines) :].all() and not found.all()


@pytest.mark.parametrize(("name", "opponent"), [match for match in MATCHES if match[1] != "self"])
def test_opponents_keep_the_rules(name, opponent):
    num_envs = 200
    env, obs = start(name, opponent, num_envs)
    draws = torch.Generator().manual_seed(0)
    opened, results = [], set()
    first = [True] * num_envs
    for _ in range(21):
        actions = random_actions(name, obs, draws)
        actions[0] = 0  # soon illegal
        before, (obs, reward, terminated, _, info) = obs, env.step(actions)
        for i in range(num_envs):
            own, other = sets(before[i])
            if first[i]:
                assert not own and len(other) <= 1
                opened.append(len(other))
            own_now, other_now = sets(info["final_obs"][i])
            cell = landing(name, own | other, int(actions[i]))
            after = own if cell is None else own | {cell}
            result = result_of(name, cell, after, other)
            if result is None:
                assert other_now in [stones for _, stones in following(name, other, after)]
                reply_result = result_of(name, 0, other_now, after)
                result = None if reply_result is None else -reply_result
            else:
                assert other_now == other
            assert own_now == after and float(reward[i]) == (result or 0)
            assert bool(terminated[i]) == (result is not None)
            first[i] = result is not None
            results.add(result)
    assert abs(sum(opened) / len(opened) - 0.5) < 2 / len(opened) ** 0.5
    assert -1 in results and (opponent == "random") <= (1 in results)


@pytest.mark.parametrize(("name", "opponent"), MATCHES)
def test_a_copy_plays_as_alone(name, opponent):
    together, obs = start(name, opponent, 40)
    alone, one = start(name, opponent, 1, seed=33)
    draws = torch.Generator().manual_seed(0)
    for _ in range(30):
        assert torch.equal(obs[33:34], one)
        actions = random_actions(name, obs, draws)
        obs, *flags, info = together.step(actions)
        one, *own_flags, own_info = alone.step(actions[33:34])
        assert all(torch.equal(a[33:34], b) for a, b in zip(flags, own_flags, strict=True))
        assert torch.equal(info["final_obs"][33:34], own_info["final_obs"])


@cache
def outcome(own, other) -> int:
    """Of tic-tac-toe under perfect play, for the player to move."""
    if wins("tic_tac_toe", other):
        return -1
    after = following("tic_tac_toe", own, other)
    return max((-outcome(other, stones) for _, stones in after), default=0)


@cache
def random_value(own, other) -> float:
    """The best mean return in tic-tac-toe against a random opponent, for the agent to move."""

    def after_reply(stones, reply):
        return -1 if wins("tic_tac_toe", reply) else random_value(stones, reply)

    def value(stones):
        if wins("tic_tac_toe", stones):
            return 1
        replies = following("tic_tac_toe", other, stones)
        values = [after_reply(stones, reply) for _, reply in replies]
        return sum(values) / max(1, len(values))

    return max((value(stones) for _, stones in following("tic_tac_toe", own, other)), default=0)


def test_minimax_is_exact():
    game = TicTacToe("minimax")
    state = positions("tic_tac_toe", 200)
    scores = game.scores(state)
    for row, obs in zip(scores, game.observe(state), strict=True):
        own, other = sets(obs)
        expected = {
            action: -outcome(other, stones)
            for action, stones in following("tic_tac_toe", own, other)
        }
        legal = {action: score for action, score in enumerate(row.tolist()) if score > -2}
        assert legal == expected
    empty = frozenset()
    second = sum(random_value(empty, frozenset({cell})) for cell in CELLS["tic_tac_toe"]) / 9
    assert (random_value(empty, empty) + second) / 2 == pytest.approx(0.9598, abs=1e-4)


def test_minimax_replies_with_every_best_move_alike():
    game, draws = TicTacToe("minimax"), torch.rand(9000, generator=torch.Generator().manual_seed(0))
    empty = torch.zeros(1, 2, dtype=torch.int64)
    counts = game.reply(empty, draws).bincount(minlength=9)
    assert (counts - 1000).abs().max() < 150
    corner, _, _ = game.move(empty, torch.tensor([0]))
    assert game.reply(corner, draws).unique().tolist() == [4]


def minimax(obs):
    own, other = obs.long().flatten(-2).unbind(-2)
    number = ((own + 2 * other) * 3 ** torch.arange(9)).sum(-1)
    return tic_tac_toe.outcomes(obs.device)[number].argmax(-1)


def test_minimax_never_loses():
    assert worst_result(minimax) == 0
    env, obs = start("tic_tac_toe", "minimax", 2000)
    draws = torch.Generator().manual_seed(0)
    total = lost = ended = 0
    for _ in range(10):
        obs, reward, terminated, _, _ = env.step(random_actions("tic_tac_toe", obs, draws))
        assert (reward <= 0).all()
        ended += int(terminated.sum())
        lost += int((reward < 0).sum())
    assert ended > 2000 and lost > 0.7 * ended
    env, obs = start("tic_tac_toe", "minimax", 200)
    for _ in range(5):
        obs, reward, terminated, _, _ = env.step(minimax(obs))
        total += int(terminated.sum())
        assert not reward.any()
    assert total >= 200


def test_worst_result_finds_every_loss():
    assert worst_result(lambda obs: TicTacToe.legal(obs).float().argmax(-1)) == -1
    assert worst_result(lambda obs: torch.zeros(len(obs), dtype=torch.int64)) == -1  # soon illegal

    def forgets(obs):
        """Perfect but in one position: between two corners of the other's it takes a third."""
        trap = (
            (obs[:, 1, 0, 0] == 1)
            & (obs[:, 1, 2, 2] == 1)
            & (obs[:, 0, 1, 1] == 1)
            & (obs.sum((1, 2, 3)) == 3)
        )
        return torch.where(trap, 2, minimax(obs))

    assert worst_result(forgets) == -1


def naive_search(own, other, depth) -> dict[int, float]:
    """Of Connect Four: each legal action's score."""
    scores = {}
    for action, stones in following("connect_four", own, other):
        if wins("connect_four", stones):
            scores[action] = WIN + depth
        elif depth == 1:
            scores[action] = prospects(stones, other) - prospects(other, stones)
        else:
            scores[action] = -max(naive_search(other, stones, depth - 1).values(), default=0)
    return scores


def prospects(own, other):
    return sum(
        (len(line & own) - 1) ** 2
        for line in LINES["connect_four"]
        if not line & other and line & own
    )


def test_search_is_negamax():
    game = ConnectFour("search")
    state = torch.cat([positions("connect_four", 26)[::3], late_positions()])
    scores = game.scores(state)
    for row, obs in zip(scores, game.observe(state), strict=True):
        expected = naive_search(*sets(obs), DEPTH)
        legal = {action: score for action, score in enumerate(row.tolist()) if score > -torch.inf}
        assert legal == expected


def late_positions():
    """States [8, 2] of Connect Four with one to three free cells."""
    env, obs = start("connect_four", "self", 500)
    draws = torch.Generator().manual_seed(0)
    found = []
    for _ in range(42):
        obs = env.step(random_actions("connect_four", obs, draws))[0]
        found.append(env.state[obs.sum((1, 2, 3)) >= 39])
    return torch.cat(found)[-8:]


def test_search_sees_what_is_near():
    game = ConnectFour("search")
    state = positions("connect_four", 1040)
    replies = [
        game.reply(state, torch.full((len(state),), draw)).tolist() for draw in (0.0, 0.5, 0.99)
    ]
    won = blocked = forced = 0
    for obs, *actions in zip(game.observe(state), *replies, strict=True):
        own, other = sets(obs)
        after = dict(following("connect_four", own, other))
        winning = {action for action, stones in after.items() if wins("connect_four", stones)}
        threats = {
            action
            for action, stones in following("connect_four", other, own)
            if wins("connect_four", stones)
        }
        if winning:
            won += 1
            assert winning.issuperset(actions)
        elif len(threats) == 1:
            holds = {
                action
                for action, stones in after.items()
                if not any(
                    wins("connect_four", s) for _, s in following("connect_four", other, stones)
                )
            }
            blocked += 1
            assert not holds or set(actions) <= threats
        elif not threats:
            forcing = {action for action, stones in after.items() if two_ply_win(stones, other)}
            forced += bool(forcing)
            assert not forcing or forcing.issuperset(actions)
    assert min(won, blocked, forced) > 10, (won, blocked, forced)


def two_ply_win(own, other) -> bool:
    """Whether `own`, who has just moved, wins with the next move whatever `other` does."""
    for _, theirs in following("connect_four", other, own):
        if wins("connect_four", theirs) or not any(
            wins("connect_four", stones) for _, stones in following("connect_four", own, theirs)
        ):
            return False
    return True


def test_search_beats_random():
    env, obs = start("connect_four", "search", 200)
    draws = torch.Generator().manual_seed(0)
    alive = torch.ones(200, dtype=torch.bool)
    total = torch.zeros(200)
    while alive.any():
        obs, reward, terminated, _, _ = env.step(random_actions("connect_four", obs, draws))
        total += reward * alive
        alive &= ~terminated
    assert float((total == -1).float().mean()) > 0.95
