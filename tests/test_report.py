"""rlx report of different agents: what it compares, in which order, and what it refuses."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from rlx import statistics
from rlx.runs.finding import shown_paths
from rlx.runs.run import Run

EPISODES = 8
UNITS = [0.05, 0.05, 0.01, 0.05]


@pytest.fixture
def training(composed, tmp_path):
    """training("dqn") is the directory of a training that nobody played, with its config."""

    def make(agent: str, *overrides: str, env: str = "cartpole") -> Path:
        config = composed("train", f"agent={agent}", f"env={env}", *overrides)
        return Run.create(str(tmp_path / "outputs"), "train", f"{agent}-{env}", config).path

    return make


@pytest.fixture
def attacked(composed, tmp_path):
    """attacked(training, returns) is the directory of an attack run with the given results."""

    def make(
        training: Path,
        returns: dict[str, np.ndarray],
        *overrides: str,
        eps: tuple[float, ...] = (0.0, 0.5, 1.0),
        scale: list[float] = UNITS,
        attack: str = "fgsm",
        random: float = 20.0,
        node: dict | None = None,
    ) -> Path:
        config = composed("attack", f"attack={attack}", f"scale={scale}", *overrides)
        OmegaConf.set_struct(config, False)
        if node is not None:
            config.attack = node
        cells = []
        for mode, values in returns.items():
            for number, radius in enumerate(eps):
                estimate = statistics.estimate(values[:, number]).as_dict()
                cell = {"attack": attack, "head": mode, "eps": radius, "return": estimate}
                cells.append(cell)
        clean = next(iter(returns.values()))[:, 0]
        summary = {
            "run": [str(training)],
            "seeds": list(range(len(clean))),
            "eps": list(eps),
            "scale": scale,
            "clean": statistics.estimate(clean).as_dict(),
            "random": random,
            "cells": cells,
        }
        run = Run.create(str(tmp_path / "outputs"), "attack", training.parent.name, config)
        run.complete(summary, returns)
        return run.path

    return make


def falling(*levels: float, seeds: int = 5, shift: float = 0.0) -> np.ndarray:
    """Returns [S, E, P] around a level for each radius; seeds and episodes differ."""
    rng = np.random.default_rng(len(levels))
    of_seeds = np.linspace(-10, 10, seeds)[:, None, None]
    of_episodes = 5 * rng.normal(size=EPISODES)
    return np.array(levels)[:, None] + of_seeds + of_episodes + shift


@pytest.fixture
def two(training, attacked):
    """Attack runs on two agents; the second is the more robust."""
    weak = attacked(training("dqn"), {"action": falling(420, 200, 40)})
    strong = attacked(training("ppo"), {"action": falling(300, 280, 250)})
    return weak, strong


def rows(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(file) as opened:
        return list(csv.DictReader(opened))


def test_the_numbers_of_two_agents(rlx, two):
    weak, strong = two
    result = rlx("report", weak, strong)
    assert result.code == 0, result.err
    summary = result.summary
    assert summary["run"] == [str(strong), str(weak)], "by area, the larger first"
    assert summary["labels"] == ["ppo-cartpole, fgsm ce", "dqn-cartpole, fgsm ce"]
    returns = {"strong": falling(300, 280, 250), "weak": falling(420, 200, 40)}
    iqms = {name: np.sort(values.mean(2), 0)[1:4].mean(0) for name, values in returns.items()}
    assert summary["random"] == 20 and summary["best_clean"] == pytest.approx(iqms["weak"][0])
    span = iqms["weak"][0] - 20
    areas = {}
    for name, values in iqms.items():
        score = (values - 20) / span
        areas[name] = (score[0] + 2 * score[1] + score[2]) / 4
    found = [agent["area"] for agent in summary["agents"]]
    assert found == pytest.approx([areas["strong"], areas["weak"]])
    assert summary["agents"][0]["critical_eps"] == ">1"
    half = 20 + span / 2
    critical = 0.5 * (iqms["weak"][0] - half) / (iqms["weak"][0] - iqms["weak"][1])
    assert summary["agents"][1]["critical_eps"] == pytest.approx(critical)
    (pair,) = summary["differences"]
    assert pair["return"] == pytest.approx(list(iqms["strong"] - iqms["weak"]))
    assert pair["area"] == pytest.approx(areas["strong"] - areas["weak"])
    assert pair["critical_eps"] == pytest.approx(1 - critical)
    assert "≥" in result.out, "the difference of a radius beyond the grid is a bound"
    assert pair["probability"] == 1 and pair["probability_ci95"] == [1, 1]
    low, high = pair["area_ci95"]
    assert low < pair["area"] < high
    assert "[0.05,0.05,0.01,0.05]" in result.out


def test_the_files(rlx, two, real_figures):
    weak, strong = two
    result = rlx("report", weak, strong)
    for name in ("report.png", "report.pdf"):
        assert (result.run / name).stat().st_size > 5000
    table = rows(result.run / "report.csv")
    assert [(row["rank"], row["run"], row["eps"]) for row in table] == [
        (rank, str(run), eps)
        for rank, run in (("1", strong), ("2", weak))
        for eps in ("0.0", "0.5", "1.0")
    ]
    cells = json.loads((weak / "summary.json").read_text())["cells"]
    assert float(table[4]["iqm"]) == cells[1]["return"]["iqm"]
    assert float(table[4]["ci95_low"]) == cells[1]["return"]["ci95"][0]
    pairs = rows(result.run / "pairs.csv")
    names = [row["statistic"] for row in pairs]
    assert names == ["return"] * 3 + ["area", "critical_eps", "probability"]
    (pair,) = result.summary["differences"]
    assert float(pairs[3]["first_minus_second"]) == pair["area"]
    assert [float(row["first_minus_second"]) for row in pairs[:3]] == pair["return"]


def test_the_order_of_the_arguments_is_without_effect(rlx, two):
    there, back = rlx("report", *two), rlx("report", *reversed(two))
    assert there.summary == back.summary
    assert (there.run / "pairs.csv").read_text() == (back.run / "pairs.csv").read_text()


def test_equal_boxes_in_other_units_are_compared(rlx, two, training, attacked):
    double = attacked(
        training("a2c"),
        {"action": falling(400, 300, 200)},
        eps=(0.0, 0.25, 0.5),
        scale=[2 * unit for unit in UNITS],
    )
    result = rlx("report", two[0], double)
    assert result.code == 0 and result.summary["eps"] == [0, 0.5, 1]


def test_several_attacks_of_one_agent_are_resampled_alike(rlx, two, training, attacked):
    """Their seeds are the same, so that a constant difference has no spread."""
    weak, strong = two
    own = Path(json.loads((weak / "summary.json").read_text())["run"][0])
    worse = attacked(own, {"action": falling(420, 200, 40, shift=-8)}, attack="pgd")
    result = rlx("report", weak, worse, strong)
    pair = next(one for one in result.summary["differences"] if "ppo" not in one["first"])
    assert pair["return"] == pytest.approx([8, 8, 8])
    np.testing.assert_allclose(pair["return_ci95"], 8)
    assert "under different attacks" in result.out


def test_an_agent_of_one_head_is_compared_with_all_heads_of_another(rlx, training, attacked):
    heads = {
        "both": falling(400, 100, 50),
        "goal": falling(400, 390, 380),
        "action": falling(400, 395, 390),
    }
    deep = attacked(training("hdqn"), heads)
    flat = attacked(training("dqn"), {"action": falling(400, 300, 200)})
    for mode in ([], ["mode=both"]):
        result = rlx("report", deep, flat, *mode)
        assert result.summary["modes"] == ["action", "both"], result.err
        assert "dqn" in result.summary["labels"][0] and result.summary["labels"][0][0] == "d"
    result = rlx("report", deep, flat, "mode=action")
    assert result.summary["modes"] == ["action", "action"]
    assert result.summary["labels"][0].startswith("hdqn")
    refused = rlx("report", deep, flat, "mode=goal")
    assert refused.code == 2 and "mode=goal: not all attacks have it" in refused.err
    noisy = {"same": falling(400, 390, 300), "diff": falling(400, 395, 300), "goal": heads["goal"]}
    noise = attacked(training("hdqn", "seeds=3"), noisy, attack="noise")
    result = rlx("report", noise, flat, deep)
    assert result.summary["modes"] == ["same", "action", "both"], "never the harmless action alone"
    chosen = attacked(training("ppo"), {"action": falling(400, 300, 200)}, "modes=action")
    assert rlx("report", deep, chosen).summary["modes"] == ["action", "action"]


def test_labels_name_agent_attack_and_target(rlx, training, attacked):
    one = training("dqn")
    other = training("dqn", "agent.double=false")
    returns = {"action": falling(400, 300, 200)}
    own = {"_target_": "rlx.attacks.noise.Noise", "width": 1.0}
    runs = [
        attacked(one, returns, "attack.target=1", attack="pgd"),
        attacked(one, returns, attack="pgd"),
        attacked(other, returns, attack="noise", node=own),
        attacked(other, returns, "attack.steps=5", attack="pgd"),
    ]
    labels = rlx("report", *runs).summary["labels"]
    assert len(set(labels)) == 4
    assert any("towards 1" in label for label in labels)
    assert any(label.endswith(", noise") for label in labels), "the option, not the class"
    assert any("double=false" in label.lower() and "steps=5" in label for label in labels)


def test_attacks_on_the_same_agents_are_labelled_as_the_user_chose_them(rlx, training, attacked):
    agent = training("dqn")
    returns = {"action": falling(400, 300, 200)}
    towards = attacked(agent, returns, "attack.target=0", attack="pgd")
    away = attacked(agent, returns, attack="pgd")
    result = rlx("report", towards, away)
    assert result.summary["labels"] == ["pgd margin towards 0", "pgd margin"]
    assert result.summary["spearman_with_first"] == pytest.approx([1, 1])


def test_compare_names_the_agents_and_always_subtracts_b(rlx, two):
    weak, strong = two
    for first, second, names in (
        (weak, strong, ["dqn-cartpole", "ppo-cartpole"]),
        (strong, weak, ["ppo-cartpole", "dqn-cartpole"]),
    ):
        lines = rlx("compare", first, second).out.splitlines()
        cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
        assert ["agent", *names] in cells
        named = {row[0]: row for row in cells if row and row[0] in ("A", "B", "A − B")}
        assert [named[letter][1].split(",")[0] for letter in "AB"] == names
        area_a, area_b = (float(named[name][-2].split()[0]) for name in "AB")
        difference = float(named["A − B"][-3].split()[0])
        assert difference == pytest.approx(area_a - area_b, abs=0.002)
    assert "agent    dqn-cartpole in both" in rlx("compare", weak, weak).out


def test_a_defended_agent_is_called_the_same_everywhere(rlx, training, attacked):
    defended = training("dqn", "defence=radial", "agent.defence.eps=0.3", "agent.double=false")
    levels = {"action": falling(420, 200, 40)}
    runs = [attacked(defended, levels), attacked(training("dqn"), levels)]
    other = training("dqn", "defence=radial", "agent.defence.eps=0.3", "agent.defence.weight=0.5")
    labels = rlx("report", *runs).summary["labels"]
    assert sorted(labels) == [
        "dqn-cartpole, fgsm ce",
        "dqn-cartpole, radial (eps 0.3), fgsm ce",
    ]
    runs.append(attacked(other, levels))
    labels = rlx("report", *runs).summary["labels"]
    assert "dqn-cartpole, fgsm ce" in labels
    (label,) = [text for text in labels if "weight=0.5" in text]
    assert label.startswith("dqn-cartpole, radial (eps 0.3) ") and "keep" not in label
    with open(Path("list.csv"), "w") as file:
        file.write(rlx("list", "format=csv").out)
    of_attacks = [row["defence"] for row in rows(Path("list.csv")) if row["kind"] == "attack"]
    assert of_attacks == ["radial", "", "radial"]
    shown = rlx("show", runs[0])
    assert shown.code == 0 and "defence=radial (eps 0.3)" in shown.out


def test_few_seeds_are_warned_of(rlx, training, attacked):
    few = attacked(training("dqn"), {"action": falling(400, 300, 200, seeds=3)})
    many = attacked(training("ppo"), {"action": falling(400, 300, 250, seeds=6)})
    assert "an interval of 3 seeds is too narrow" in rlx("report", few, many).out
    again = attacked(training("dqn"), {"action": falling(400, 300, 200, seeds=3)}, attack="pgd")
    file = again / "summary.json"
    of_few = json.loads((few / "summary.json").read_text())["run"]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"run": of_few}))
    out = rlx("report", few, again).out
    assert "an interval of 3 seeds is too narrow" in out and "Spearman" not in out
    assert "ranks of 3 seeds say little" in out and "agent's rank" not in out
    one = attacked(training("a2c"), {"action": falling(400, 300, 220, seeds=1)})
    result = rlx("report", one, many)
    assert result.code == 0 and result.summary["differences"][0]["area_ci95"] == [None, None]


def refusal(result) -> str:
    """The one line that a command says when it refuses, having printed and written nothing."""
    assert result.code == 2 and not result.out
    (line,) = result.err.strip().splitlines()
    assert not Path("outputs/report").exists()
    return line


def test_refusals_are_one_line(rlx, two, training, attacked):
    weak, _ = two
    levels = {"action": falling(400, 300, 200)}
    own_std = attacked(training("ppo"), levels, scale=[0.5, 0.3, 0.011, 0.2])
    line = refusal(rlx("report", weak, own_std))
    assert "scale=reference" in line and "[0.5,0.3,0.011,0.2]" in line and str(own_std) in line
    radii = attacked(training("ppo"), levels, eps=(0.0, 0.2, 1.0))
    for command in ("report", "compare"):
        assert "has other radii" in refusal(rlx(command, weak, radii))
    fewer = attacked(training("ppo"), {"action": falling(400, 300)}, eps=(0.0, 0.5))
    assert "eps=[0,0.5], not [0,0.5,1]; attack one" in refusal(rlx("report", weak, fewer))
    episodes = attacked(training("ppo"), {"action": falling(400, 300, 200)[:, :, :5]})
    Run(episodes).write_meta(line=None)  # as of an rlx that noted none
    line = refusal(rlx("report", weak, episodes))
    assert "played 5 episodes" in line and line.endswith("attack it again with episodes=8")
    Run(episodes).write_meta(line="rlx attack attack=fgsm episodes=5 'run=[x]' scale=reference")
    line = refusal(rlx("report", episodes, weak))
    (trained,) = json.loads((episodes / "summary.json").read_text())["run"]
    (trained,) = shown_paths([trained])
    assert line.endswith(f": rlx attack {trained} attack=fgsm scale=reference episodes=8")
    long = attacked(training("ppo", "env.max_episode_steps=200"), levels)
    line = refusal(rlx("report", weak, long))
    assert "another env" in line and "env.max_episode_steps=200" in line
    acrobot = attacked(training("ppo", env="acrobot"), levels)
    line = refusal(rlx("report", weak, acrobot))
    assert line.endswith("env._target_=rlx.envs.acrobot.Acrobot, not rlx.envs.cartpole.CartPole.")
    assert "mode=goals: unknown" in refusal(rlx("report", *two, "mode=goals"))
    gone = attacked(Path("outputs/train/ppo-cartpole/none"), levels)
    assert "is not there" in refusal(rlx("report", weak, gone))
    hopeless = [attacked(training(name), {"action": falling(9, 9, 9)}) for name in ("dqn", "ppo")]
    assert "plays better than random play" in refusal(rlx("report", *hopeless))
    file = two[1] / "returns.npz"
    whole = file.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"returns"):
        file.write_bytes(broken)
        assert f"{file}: cannot be read" in refusal(rlx("report", *two))
        assert f"{file}: cannot be read" in refusal(rlx("compare", *two))
    np.savez(file, action=np.zeros((5, 2, 8)))
    assert "has the shape [5, 2, 8]" in refusal(rlx("report", *two))


def test_agents_that_two_runs_share_in_part_are_refused(rlx, two, training, attacked):
    weak, strong = two
    file = strong / "summary.json"
    summary = json.loads(file.read_text())
    summary["run"] += json.loads((weak / "summary.json").read_text())["run"]
    file.write_text(json.dumps(summary))
    assert "attacks some agents that" in refusal(rlx("report", weak, strong))
    same = attacked(training("a2c"), {"action": falling(400, 300, 200)}, "checkpoint=100")
    file = same / "summary.json"
    summary = json.loads(file.read_text())
    summary["run"] = json.loads((weak / "summary.json").read_text())["run"]
    file.write_text(json.dumps(summary))
    other = attacked(training("ppo"), {"action": falling(400, 300, 200)})
    assert "attacks checkpoint" in refusal(rlx("report", weak, same, other))


def test_the_same_training_written_in_two_ways_is_the_same(rlx, training, attacked):
    agent = training("dqn")
    levels = {"action": falling(400, 300, 200)}
    whole = attacked(agent, levels)
    relative = attacked(agent.relative_to(Path.cwd()), levels, attack="pgd")
    assert "rank" in rlx("report", whole, relative).summary
