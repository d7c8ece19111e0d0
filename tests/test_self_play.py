"""Negamax targets, the league, and a player that cannot be beaten."""

import pytest
import torch
from test_agents import Learner

from rlx.agents.self_play import mirrored
from rlx.envs.connect_four import ConnectFour
from rlx.envs.tic_tac_toe import TicTacToe, worst_result
from rlx.nn.networks import take
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
        assert (
            TicTacToe.legal(t.obs).gather(-1, t.action.unsqueeze(-1)).all()
            and (t.reward >= 0).all()
        )
        assert ((one.agent.policy.q(t.obs) == FORBIDDEN) == ~TicTacToe.legal(t.obs)).all()
    rows = one.agent.learners[0].replay.rows(None)
    assert torch.equal(rows["discount"], torch.where(rows["last"], 0.0, -0.99))
    own, other = rows["obs"].view(-1, 2, 9).unbind(1)
    mine, theirs = rows["next_obs"].view(-1, 2, 9).unbind(1)
    assert torch.equal(mine, other) and ((theirs - own).sum(1) == 1).all(), (
        "the next position is the other player's"
    )


@pytest.mark.rounding
def test_values_of_taken_moves_are_those_of_all(composed):
    one = learner(composed)
    for _ in range(20):
        t = one.step()
        q = one.agent.online[0].q
        assert torch.allclose(
            q.taken(t.obs.flatten(2), t.action),
            q(t.obs).gather(-1, t.action.unsqueeze(-1)).squeeze(-1),
            atol=1e-6,
        )


def test_games_begin_at_random(composed):
    one = learner(
        composed, "agent.opening=3", "agent.epsilon_start=0", "agent.epsilon_end=0", num_envs=400
    )
    begins = []
    for _ in range(5):
        before = (
            one.agent.online[0].q(one.obs).argmax(-1),
            one.agent.online[1].q(one.obs).argmax(-1),
        )
        t = one.step()
        begins.append(float(((t.action != before[0]) & (t.action != before[1])).float().mean()))
    assert begins[0] > begins[1] > begins[2] > 0 and max(begins[3:]) < begins[2]


@pytest.mark.parametrize("game", [TicTacToe, ConnectFour])
def test_mirror_images(game):
    after = game.after(torch.zeros(game.observation_space.shape))
    mirror = mirrored(after)
    assert torch.equal(after[mirror], after.flip(-1)) and not torch.equal(
        mirror, torch.arange(len(mirror))
    )


def test_half_of_the_copies_teach_their_mirror_image(composed):
    one = learner(composed, "agent.mirror=true")
    seen = [one.step() for _ in range(5)]
    rows = one.agent.learners[0].replay.rows(None)
    image = mirrored(TicTacToe.after(torch.zeros(2, 3, 3)))
    for name in ("obs", "next_obs"):
        shown, stored = (
            torch.stack([getattr(t, name) for t in seen], 2),
            rows[name].view(2, 8, 5, 2, 3, 3),
        )
        assert torch.equal(stored[:, ::2], shown[:, ::2]) and torch.equal(
            stored[:, 1::2], shown[:, 1::2].flip(-1)
        )
    actions, stored = torch.stack([t.action for t in seen], 2), rows["action"].view(2, 8, 5)
    assert torch.equal(stored[:, ::2], actions[:, ::2]) and torch.equal(
        stored[:, 1::2], image[actions[:, 1::2]]
    )


def test_learners_meet_each_other_and_the_league_on_both_sides(composed):
    one, pairs = learner(composed, "agent.league=2", "agent.league_games=0.5", num_envs=500), []
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
        selves.append(one.agent.online[0].state_dict()["q.net.layers.0.weight"].clone())
    newest = one.agent.league[0].state_dict()[
        "q.net.layers.0.weight"
    ]  # joined third, after six: the first learner's
    assert any(torch.equal(newest, past) for past in selves) and not torch.equal(newest, selves[-1])


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
    one = Learner(
        composed("train", *QUICK[:1], f"env={game}", "env.opponent=self", *QUICK[2:]), [3, 5], 6
    )
    policy, q, won = one.agent.policy, one.agent.policy.q, 0

    def search(board, plies):
        learnt, values = q(board.expand(2, 1, *board.shape))[0, 0], []
        for action, value in enumerate(learnt.tolist()):
            after = q.rules.after(board)[action]
            if value == FORBIDDEN or plies == 1:
                values.append(value)
            elif bool(q.rules.line(after)):
                values.append(1.0)
            else:
                best = max(search(after.flip(0), plies - 1))
                values.append(0.0 if best == FORBIDDEN else -policy.discount * best)
        return values

    for _ in range(12):
        one.step()
        got = policy.values(one.obs, 2)
        won += int((got == 1).sum())
        assert torch.allclose(got[0, 0], torch.tensor(search(one.obs[0, 0], 2)), atol=1e-5)
    assert won > 0
