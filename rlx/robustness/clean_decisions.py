"""The decisions of clean episodes, with the networks that took them, to be looked at afterwards."""

from dataclasses import dataclass, replace

import gymnasium
import torch
from torch import Tensor

from rlx.agent import Choose, Scores
from rlx.errors import ConfigError
from rlx.evaluation import REPORT, evaluate
from rlx.policies import Opened
from rlx.robustness.layers import check_discrete, read_network
from rlx.robustness.network import Network
from rlx.robustness.weights import same_weights
from rlx.victims.policy import Rows


@dataclass(frozen=True)
class Decisions:
    """N decisions of one head of one seed, in the order in which they were taken."""

    network: Network
    """The network of this seed, at the N rows."""
    obs: Tensor
    """What was observed, float32 [N, *O]."""
    clean: Tensor
    """What was decided, int64 [N]."""
    episode: Tensor
    """The number of the episode, int64 [N]."""


@dataclass(frozen=True)
class _Step:
    """What one head decided at one step, on the copies that still played."""

    scores: Scores
    """The policy itself, at this step's rows."""
    network: Network
    """Its network, of which only the biases are kept."""
    obs: Tensor
    """[S', B', *O]."""
    clean: Tensor
    """int64 [S', B']."""
    seeds: Tensor
    """Which of the S seeds the rows are of, int64 [S']."""
    episode: Tensor
    """int64 [S', B']."""
    deciding: Tensor
    """bool [S', B']."""


class CleanDecisions:
    """Plays clean episodes, and keeps every decision."""

    def __init__(self, opened: Opened, episodes: int):
        """Play `episodes` of each seed; ConfigError where there are no bounds of the scores."""
        self.seeds = len(opened.seeds)
        self.episodes = episodes
        self.steps: dict[str, list[_Step]] = {head: [] for head in opened.policy.heads}
        self.weights: dict[str, Network] = {}
        evaluate(
            opened.policy,
            opened.make_env,
            self.seeds,
            episodes,
            REPORT,
            opened.device,
            self._make_choose,
        )

    def _make_choose(self, ids: Tensor) -> Choose:
        """How the copies `ids` choose, for `rollout`: greedily."""
        seeds = ids[:, 0] // self.episodes
        episode = ids % self.episodes

        def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
            obs = obs.float()
            network = read_network(scores, obs)
            clean = scores.best(obs)
            self._check_weights(head, network, seeds)
            biases = _without_weights(network)
            step = _Step(scores, biases, obs.clone(), clean, seeds, episode, deciding.clone())
            self.steps[head].append(step)
            return clean

        return choose

    def _check_weights(self, head: str, network: Network, seeds: Tensor) -> None:
        """ConfigError where the weights are others than at the first step."""
        first = self.weights.setdefault(head, network)
        for one, other in zip(first.layers, network.layers, strict=True):
            if not same_weights(one.weight, seeds, other.weight):
                raise ConfigError(f"certify: the weights of head {head} change within an episode.")

    def of(self, head: str, seed: int) -> Decisions:
        """The decisions of a `head` of seed number `seed`."""
        steps = [(step, _row_of(step, seed)) for step in self.steps[head]]
        present = [(step, row) for step, row in steps if row is not None]
        mask = [step.deciding[row] for step, row in present]
        layers = []
        for number, layer in enumerate(self.weights[head].of_seed(seed).layers):
            biases = [step.network.layers[number].bias[row] for step, row in present]
            sizes = [step.network.layers[number].bias_size[row] for step, row in present]
            layers.append(
                replace(layer, bias=_joined(biases, mask), bias_size=_joined(sizes, mask))
            )
        return Decisions(
            Network(tuple(layers)),
            torch.cat([step.obs[row, at] for (step, row), at in zip(present, mask, strict=True)]),
            torch.cat([step.clean[row, at] for (step, row), at in zip(present, mask, strict=True)]),
            torch.cat(
                [step.episode[row, at] for (step, row), at in zip(present, mask, strict=True)]
            ),
        )

    def shown(self, head: str, obs: list[Tensor]) -> list[Tensor]:
        """What the policy itself decides, int64 [N], when it is shown `obs` in place of its own.

        `obs`: for each seed [N, *O], in the order of `of`.
        """
        place = [0] * self.seeds
        decided: list[list[Tensor]] = [[] for _ in range(self.seeds)]
        for step in self.steps[head]:
            moved = step.obs.clone()
            for row, seed in enumerate(step.seeds.tolist()):
                at = step.deciding[row]
                count = int(at.sum())
                moved[row, at] = obs[seed][place[seed] : place[seed] + count]
                place[seed] += count
            decision = step.scores.best(moved)
            for row, seed in enumerate(step.seeds.tolist()):
                decided[seed].append(decision[row, step.deciding[row]])
        return [torch.cat(parts) for parts in decided]


def check_bounded(opened: Opened) -> None:
    """ConfigError where there are no bounds of what a policy decides at an episode's first step."""
    if opened.spec.stack > 1:
        raise ConfigError(
            f"certify: the policy sees {opened.spec.stack} observations at once, of which only the "
            "newest can be moved: there are no bounds of that."
        )
    if isinstance(opened.policy, Rows):
        raise ConfigError(
            "certify: these victims are no plain networks of one shape; there are bounds of "
            "fully connected layers with ReLU or tanh in sb3:, torchscript: and onnx: files."
        )
    env = opened.make_env(len(opened.seeds))
    obs = env.reset(seed=REPORT)[0].unsqueeze(1)
    first = torch.ones(obs.shape[:2], dtype=torch.bool, device=obs.device)
    numbers = isinstance(opened.spec.observation_space, gymnasium.spaces.Discrete)

    def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        if numbers:
            check_discrete(scores)  # the scores of each number can be asked for
        else:
            read_network(scores, obs.float())
        return scores.best(obs)

    opened.policy.act(obs, first, opened.policy.initial_carry(1), choose)


def _without_weights(network: Network) -> Network:
    """The biases of a network: its weights are the same at every step."""
    empty = torch.empty(0)
    return Network(
        tuple(replace(layer, weight=empty, weight_size=empty) for layer in network.layers)
    )


def _row_of(step: _Step, seed: int) -> int | None:
    """The row of a seed at a step; None where its episodes are over."""
    rows = torch.nonzero(step.seeds == seed)
    return int(rows[0]) if len(rows) else None


def _joined(biases: list[Tensor], masks: list[Tensor]) -> Tensor:
    """The biases [B' or 1, m] of all steps at their rows in the masks [B'], as [1, N or 1, m]."""
    if all(len(bias) == 1 and torch.equal(bias, biases[0]) for bias in biases):
        return biases[0].unsqueeze(0)
    parts = [bias.expand(len(at), -1)[at] for bias, at in zip(biases, masks, strict=True)]
    return torch.cat(parts).unsqueeze(0)
