"""Negamax targets, the league, and a player that cannot be beaten."""

import pytest
import torch
from test_agents import Learner

from rlx.agents.self_play import mirrored
from rlx.envs.connect_four import ConnectFour
from rlx.envs.tic_tac_toe import TicTacToe, worst_result
from rlx.nn.seed_axis import take
from rlx.policies import load_policies
from rlx.q_learning import FORBIDDEN
from rlx.runs.run import Run

QUICK = (
    "agent=self_play",
    "env=tic_tac_toe",
    "agent.learning_starts=32",
    "agent.hidden=[16]",
    "agent.buffer_size=800",
)


def learner(composed, *overrides, num_envs=8):
    return Learner(
        composed("train", *QUICK, "agent.replay_ratio=0.25", *overrides), [3, 5], num_envs
    )


def test_only_legal_moves_are_played_and_games_are_stored_as_negamax(composed):
    one = learner(composed)
    for _ in range(60):
        t = one.step()
        legal = TicTacToe.legal(t.obs)
        assert legal.gather(-1, t.action.unsqueeze(-1)).all() and (t.reward >= 0).all()
        assert ((one.agent.policy.q(t.obs) == FORBIDDEN) == ~legal).all()
    rows = one.agent.learners[0].replay.rows(None)
    assert torch.equal(rows["discount"], torch.where(rows["last"], 0.0, -0.99))
    own, other = rows["obs"].view(-1, 2, 9).unbind(1)
    # The next position is the other player's.
    next_own, next_other = rows["next_obs"].view(-1, 2, 9).unbind(1)
    assert torch.equal(next_own, other)
    assert ((next_other - own).sum(1) == 1).all()


@pytest.mark.rounding
def test_values_of_taken_moves_are_those_of_all(composed):
    one = learner(composed)
    for _ in range(20):
        t = one.step()
        q = one.agent.online[0].q
        taken = q.taken(t.obs.flatten(2), t.action)
        expected = q(t.obs).gather(-1, t.action.unsqueeze(-1)).squeeze(-1)
        assert torch.allclose(taken, expected, atol=1e-6)


def test_games_begin_at_random(composed):
    greedy = ("agent.epsilon_start=0", "agent.epsilon_end=0")
    one = learner(composed, "agent.opening=3", *greedy, num_envs=400)
    shares = []
    for _ in range(5):
        best = [player.q(one.obs).argmax(-1) for player in one.agent.online]
        action = one.step().action
        random = (action != best[0]) & (action != best[1])
        shares.append(float(random.float().mean()))
    assert shares[0] > shares[1] > shares[2] > 0 and max(shares[3:]) < shares[2]


@pytest.mark.parametrize("game", [TicTacToe, ConnectFour])
def test_mirror_images(game):
    after = game.after(torch.zeros(game.observation_space.shape))
    mirror = mirrored(after)
    assert torch.equal(after[mirror], after.flip(-1))
    assert not torch.equal(mirror, torch.arange(len(mirror)))


def test_half_of_the_env_copies_teach_their_mirror_image(composed):
    one = learner(composed, "agent.mirror=true")
    transitions = [one.step() for _ in range(5)]
    rows = one.agent.learners[0].replay.rows(None)
    image = mirrored(TicTacToe.after(torch.zeros(2, 3, 3)))
    for name in ("obs", "next_obs"):
        played = torch.stack([getattr(t, name) for t in transitions], 2)
        stored = rows[name].view(2, 8, 5, 2, 3, 3)
        assert torch.equal(stored[:, ::2], played[:, ::2])
        assert torch.equal(stored[:, 1::2], played[:, 1::2].flip(-1))
    played = torch.stack([t.action for t in transitions], 2)
    stored = rows["action"].view(2, 8, 5)
    assert torch.equal(stored[:, ::2], played[:, ::2])
    assert torch.equal(stored[:, 1::2], image[played[:, 1::2]])


def test_learners_meet_each_other_and_the_league_on_both_sides(composed):
    one = learner(composed, "agent.league=2", "agent.league_games=0.5", num_envs=500)
    pairs = []
    for _ in range(12):
        one.step()
        pairs.append(torch.stack([one.carry["first"], one.carry["second"]], -1).flatten(0, 1))
    first, second = torch.cat(pairs).unbind(-1)
    past = (first >= 2) | (second >= 2)
    assert float(past.float().mean()) == pytest.approx(0.5, abs=0.05)
    assert set(first.tolist()) == set(second.tolist()) == {0, 1, 2, 3}
    assert ((first < 2) | (second < 2)).all() and (first[~past] + second[~past] == 1).all()


def test_the_league_is_the_learners_past(composed):
    one = learner(composed, "agent.league=2", "agent.league_every=3")
    selves = []
    while int(one.agent.joined[0]) < 12:
        one.step()
        selves.append(one.agent.online[0].q.net.layers[0].weight.detach().clone())
    # The third that joined, as of the ninth minibatch or the one after it: the first learner's.
    newest = one.agent.league[0].q.net.layers[0].weight
    assert any(torch.equal(newest, past) for past in selves)
    assert not torch.equal(newest, selves[-1])


def test_envs_without_rules_for_moves_are_refused(rlx):
    result = rlx("train", "agent=self_play", "env=cartpole")
    assert result.code == 2 and "needs a game of two players" in result.err


@pytest.mark.slow
def test_tic_tac_toe_is_never_lost(rlx):
    run = rlx("train", "agent=self_play", "env=tic_tac_toe", "seeds=3", "steps=150000").run
    policy, _, seeds = load_policies([Run(run)], "best", torch.device("cpu"))
    for i in range(len(seeds)):
        one = take(policy, torch.tensor([i]))
        assert worst_result(lambda obs, one=one: one.q(obs.unsqueeze(0))[0].argmax(-1)) == 0


@pytest.mark.parametrize("game", ["tic_tac_toe", "connect_four"])
def test_looking_ahead_is_a_search_over_learnt_values(composed, game):
    config = composed("train", *QUICK[:1], f"env={game}", "env.opponent=self", *QUICK[2:])
    one = Learner(config, [3, 5], 6)
    policy = one.agent.policy
    q = policy.q

    def search(board, plies):
        learnt = q(board.expand(2, 1, *board.shape))[0, 0]
        values = []
        for action, value in enumerate(learnt.tolist()):
            after = q.rules.after(board)[action]
            if value == FORBIDDEN or plies == 1:
                values.append(value)
            elif bool(q.rules.has_won(after)):
                values.append(1.0)
            else:
                best = max(search(after.flip(0), plies - 1))
                values.append(0.0 if best == FORBIDDEN else -policy.discount * best)
        return values

    won = 0
    for _ in range(12):
        one.step()
        got = policy.values(one.obs, 2)
        won += int((got == 1).sum())
        assert torch.allclose(got[0, 0], torch.tensor(search(one.obs[0, 0], 2)), atol=1e-5)
    assert won > 0
