"""rlx card: what is known of a policy on one page; a check finds it again or names what differs."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlx import cli
from rlx.policies import fingerprint, load_policy
from rlx.robustness import card
from rlx.runs.files import sha256
from rlx.runs.run import Run
from rlx.show.console import interval_text

ATTACK = ("attack=fgsm", "eps=[0,0.1]", "scale=[0.5,0.5,0.1,0.5]", "episodes=2")
CERTIFY = (*ATTACK[1:], "max_boxes=20")


@pytest.fixture(autouse=True)
def own_rounding(request):
    """--rounding counts in this process alone: a check's own would be another machine."""
    if request.config.getoption("--rounding"):
        pytest.skip("a check runs in a process of its own")


@pytest.fixture(scope="module")
def whole(tiny_runs, tmp_path_factory):
    """A folder with two trained DQN, attacked and certified, and their card, all paths relative."""
    folder = tmp_path_factory.mktemp("card")
    shutil.copytree(tiny_runs / "train/dqn-cartpole", folder / "outputs/train/dqn-cartpole")
    with contextlib.chdir(folder):
        assert cli.run(["attack", *ATTACK]) == 0
        assert cli.run(["certify", *CERTIFY]) == 0
        assert cli.run(["card", "outputs/attack", "outputs/certify"]) == 0
    return folder


@pytest.fixture
def made(rlx, whole, tmp_path):
    """The directories of the attack, the certify run and the card of `whole`, copied to here."""
    shutil.copytree(whole / "outputs", tmp_path / "outputs")
    return tuple(next(Path("outputs", name).glob("*/*")) for name in ("attack", "certify", "card"))


def summary(run):
    return json.loads((run / "summary.json").read_text())


def training(tmp_path):
    return next((tmp_path / "outputs/train/dqn-cartpole").iterdir())


def test_a_card_has_what_the_runs_found(made, tmp_path):
    attack, certify, folder = made
    found = json.loads((folder / "card.json").read_text())
    text = (folder / "card.md").read_text()
    run = training(tmp_path)
    assert found["victim"]["paths"] == [str(run.relative_to(tmp_path))]
    assert str(tmp_path) not in json.dumps(found) + text
    policy, _, seeds = load_policy(Run(run), "best")
    sums = {str(seed): fingerprint(policy, row) for row, seed in enumerate(seeds)}
    assert found["victim"]["sha256"] == sums and len(set(sums.values())) == 2
    last = summary(attack)["cells"][1]
    assert found["returns"]["attacked"]["action"] == {
        "0": summary(attack)["cells"][0]["return"],
        "0.1": last["return"],
    }
    shares = summary(certify)["heads"]["action"]
    assert (
        found["certificates"]["decisions"]["action"]["certified"]["0.1"] == shares["certified"][1]
    )
    for estimate in (last["return"], shares["certified"][1], shares["unmoved"][1]):
        assert f" {interval_text(estimate['iqm'], estimate['ci95'])} |" in text
    assert "position ±0.05 m, speed ±0.05 m/s, angle ±0.01 rad" in found["scale"]["radii"]["0.1"]
    assert "* **does not hold**: more than one attack was played (all): one alone" in text
    assert f"rlx attack {run.relative_to(tmp_path)} attack=fgsm" in text
    assert found["made_by"]["attack"]["commit"] == Run(attack).meta()["commit"]


def test_a_check_finds_all_again_but_what_was_altered(rlx, made):
    _, _, folder = made
    altered = json.loads((folder / "card.json").read_text())
    altered["returns"]["attacked"]["action"]["0.1"]["per_seed"][1] += 1e-9
    altered["certificates"]["decisions"]["action"]["unmoved"]["0.1"]["iqm"] -= 0.5
    (folder / "altered.json").write_text(json.dumps(altered))
    result = rlx("card", "check", folder / "altered.json")
    assert result.code == 1
    assert "returns.attacked.action.0.1.per_seed[1]" in result.out
    assert "certificates.decisions.action.unmoved.0.1.iqm" in result.out
    assert "2 of what it says" in result.err
    # No path is told of the folder in which it ran.
    assert "took " in result.out
    assert all(Path(word).exists() for word in result.out.split() if word.startswith("/"))


def test_a_weight_that_is_an_ulp_off_is_named_by_its_seed(rlx, made, tmp_path):
    folder = training(tmp_path) / "checkpoints/best"
    weights = load_file(folder / "agent.safetensors")
    name = next(name for name in sorted(weights) if name.endswith("weight"))
    weights[name][1].view(-1)[0] = torch.nextafter(weights[name][1].view(-1)[0], torch.tensor(9.0))
    save_file(weights, folder / "agent.safetensors")
    # The file is not the one that was saved: that is said first.
    result = rlx("card", "check", made[2] / "card.json")
    assert result.code == 2 and "agent.safetensors: damaged" in result.err
    state = json.loads((folder / "state.json").read_text())
    state["sha256"]["agent.safetensors"] = sha256(folder / "agent.safetensors")
    (folder / "state.json").write_text(json.dumps(state))
    result = rlx("card", "check", made[2] / "card.json")
    assert result.code == 1 and "nothing was run" in result.err
    assert "victim.sha256.1" in result.out and "victim.sha256.0" not in result.out
    result = rlx("card", made[0])
    assert result.code == 2 and "the weights of seed 1 of" in result.err
    assert "are not those that rlx attack played" in result.err


def test_on_another_machine_numbers_are_held_to_the_intervals(made):
    recorded = json.loads((made[2] / "card.json").read_text())
    recorded["returns"]["clean"] = {"iqm": 10.0, "ci95": [9.0, 11.0], "per_seed": [9.0, 11.0]}
    recorded["returns"]["critical_eps"]["action"] = {"value": 0.08, "ci95": [0.05, ">0.1"]}
    again = json.loads(json.dumps(recorded))
    again["returns"]["clean"] = {"iqm": 10.5, "ci95": [9.5, 11.0], "per_seed": [9.5, 11.0]}
    again["returns"]["critical_eps"]["action"] = {"value": ">0.1", "ci95": [0.08, ">0.1"]}
    here = {found.key: found.within for found in card.differences(recorded, again)}
    assert not any(here.values())
    assert "returns.clean.per_seed[0]" in here and "returns.critical_eps.action.ci95[0]" in here
    again["made_by"]["attack"]["packages"]["torch"] = "9.9"
    there = card.differences(recorded, again)
    keys = {"returns.clean.iqm": True, "returns.critical_eps.action.value": True}
    assert {found.key: found.within for found in there} == keys
    again["returns"]["clean"]["iqm"] = 11.5
    again["attack"]["episodes"] = 3
    worse = {found.key: found.within for found in card.differences(recorded, again)}
    assert worse["returns.clean.iqm"] is False and worse["attack.episodes"] is False


@pytest.mark.parametrize(
    "line",
    [
        "rlx clean dry=false",
        "rlx attack hydra.callbacks.x._target_=os.system",
        "rlx attack +hydra/launcher=joblib",
        "rlx attack -m attack=fgsm,pgd",
        "rlx certify eps=0.1",
        "sh attack",
        "rlx attack 'eps",
        "",
    ],
)
def test_a_card_runs_nothing_but_its_attack(rlx, made, line):
    strange = json.loads((made[2] / "card.json").read_text())
    strange["commands"]["attack"] = line
    (made[2] / "strange.json").write_text(json.dumps(strange))
    result = rlx("card", "check", made[2] / "strange.json")
    assert result.code == 2 and "none of rlx attack or rlx certify" in result.err


def test_what_is_no_card_or_has_no_result_is_said_in_one_line(rlx, made, tmp_path):
    attack, certify, folder = made
    other = rlx("certify", *CERTIFY, "seeds=[1]").run
    (tmp_path / "text.json").write_text("{")
    (tmp_path / "summary.json").write_text(json.dumps(summary(attack)))
    gone = json.loads((folder / "card.json").read_text())
    gone["victim"]["paths"] = ["outputs/train/dqn-cartpole/gone"]
    (tmp_path / "gone.json").write_text(json.dumps(gone))
    gone["victim"]["paths"] = 5
    (tmp_path / "broken.json").write_text(json.dumps(gone))
    cards = set((tmp_path / "outputs/card").rglob("*"))
    for words, named in (
        (["check"], "name one card"),
        (["check", "text.json"], "text.json: cannot be read as a card"),
        (["check", "summary.json"], "summary.json: is no card"),
        (["check", "nowhere.json"], "nowhere.json: cannot be read as a card"),
        (["check", "gone.json"], "gone: no such run directory"),
        (["check", "broken.json"], "victim.paths=5"),
        ([], "name an attack run"),
        ([certify], "name an attack run"),
        ([training(tmp_path)], "made by rlx train"),
        ([attack, attack], "one attack run"),
        ([attack, other], "is of other seeds"),
    ):
        result = rlx("card", *words)
        assert result.code == 2 and named in result.err, words
        assert len(result.err.strip().splitlines()) == 1
    Run(attack).write_meta(status="interrupted")
    result = rlx("card", attack)
    assert result.code == 2 and "it is interrupted" in result.err
    assert set((tmp_path / "outputs/card").rglob("*")) == cards


def test_the_card_of_a_file_has_its_checksum(rlx, tmp_path):
    (tmp_path / "leaning.py").write_text("def decide(obs):\n    return obs[:, 2] > 0\n")
    line = ("victim=leaning.py:decide", "env=cartpole", "attack=noise", *ATTACK[1:])
    attack = rlx("attack", *line)
    assert attack.code == 0, attack.err
    made = rlx("card", attack.run)
    assert made.code == 0, made.err
    victim = json.loads((made.run / "card.json").read_text())["victim"]
    assert victim["paths"] == ["leaning.py:decide"]
    assert victim["sha256"] == {"leaning.py:decide": sha256(tmp_path / "leaning.py")}
    result = rlx("card", "check", made.run / "card.json")
    assert result.code == 0 and "holds" in result.out and "differs" not in result.out
    (tmp_path / "leaning.py").write_text("def decide(obs):\n    return obs[:, 2] > 1\n")
    result = rlx("card", attack.run)
    assert (
        result.code == 2
        and "leaning.py:decide: is not the file that rlx attack played" in result.err
    )
    result = rlx("card", "check", made.run / "card.json")
    assert result.code == 1 and "victim.sha256.leaning.py:decide" in result.out
