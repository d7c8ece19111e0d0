"""The command line as people use it: real commands, real files; and what bad input gets."""

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import AGENTS, ENVS, PAIRS, TINY, small
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_train_leaves_a_whole_run(rlx, tmp_path, real_figures):
    result = rlx(
        "train", "agent=hdqn", "env=acrobot", *TINY, "seeds=[3,5]", "agent.learning_starts=64"
    )
    assert result.code == 0 and result.run.is_relative_to("outputs/train/hdqn-acrobot")
    expected = {"config.yaml", "meta.json", "metrics.jsonl", "summary.json", "returns.npz"}
    expected |= {
        *(f"learning.{suffix}" for suffix in ("png", "pdf", "svg")),
        "checkpoints/best/agent.safetensors",
        "checkpoints/best/state.json",
    }
    for step in ("000000300", "000000600"):
        for file in ("agent.safetensors", "training.safetensors", "state.json"):
            expected.add(f"checkpoints/{step}/{file}")
        for replay in ("meta.replay", "controller.replay"):
            expected.add(f"replay/{replay}/{step}.safetensors")
    assert files(result.run) == expected
    summary = result.summary
    assert summary["status"] == "completed"
    assert summary["seeds"] == [3, 5] and summary["steps"] == 600
    assert summary["wall_s"] > 0 and summary["steps_per_s"] > 0
    assert len(summary["return"]["per_seed"]) == 2 and len(summary["return"]["ci95"]) == 2
    returns = np.load(result.run / "returns.npz")["returns"]
    assert returns.mean(1).tolist() == summary["return"]["per_seed"]
    rows = [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["seed"]) for row in rows] == [(300, 3), (300, 5), (600, 3), (600, 5)]
    assert {"return/mean", "length/mean", "loss/meta", "time/steps_per_s"} <= set(rows[0])
    best = load_file(result.run / "checkpoints/best/agent.safetensors")
    assert all(tensor.shape[0] == 2 for tensor in best.values())


def test_the_same_command_gives_the_same_numbers(rlx):
    first, second = (
        rlx("train", "env=acrobot", *TINY, "seeds=2", "agent.learning_starts=64") for _ in range(2)
    )
    assert first.run != second.run and first.summary["return"] == second.summary["return"]
    name = "checkpoints/000000600/training.safetensors"
    one, two = load_file(first.run / name), load_file(second.run / name)
    assert all((one[key] == two[key]).all() for key in one)


@pytest.mark.rounding
def test_attack_and_evaluate_agree_at_radius_zero(rlx, tiny_runs):
    attacked = rlx(
        "attack", tiny_runs / "train/hdqn-acrobot", "eps=0:0.02:0.01", "episodes=6", "attack=fgsm"
    )
    assert attacked.code == 0
    expected = {"summary.json", "returns.npz", "robustness.csv", "robustness.png", "config.yaml"}
    assert expected <= files(attacked.run)
    played = rlx("evaluate", tiny_runs / "train/hdqn-acrobot", "episodes=6")
    summary = attacked.summary
    assert summary["eps"] == [0, 0.01, 0.02]
    assert set(summary["area"]) == set(summary["critical_eps"]) == {"both", "goal", "action"}
    first = [(cell["head"], cell["eps"]) for cell in summary["cells"][:4]]
    assert first == [("both", 0), ("both", 0.01), ("both", 0.02), ("goal", 0)]
    arrays = np.load(attacked.run / "returns.npz")
    clean = np.load(played.run / "returns.npz")["returns"]
    for cell in summary["cells"]:
        assert {"attack", "head", "eps", "return", "flip_rate", "truncation_rate"} <= set(cell)
        if cell["eps"] == 0:
            # The same episodes in a larger batch: in few of them rounding may have broken a tie.
            assert summary["clean"] == played.summary["return"] and cell["flip_rate"] == 0
            assert (arrays[cell["head"]][:, 0] == clean).mean() > 0.9
    shapes = {name: arrays[name].shape for name in arrays}
    assert shapes == dict.fromkeys(("both", "goal", "action"), (2, 3, 6))
    per_seed = summary["cells"][4]["return"]["per_seed"]
    np.testing.assert_allclose(arrays["goal"][:, 1].mean(1), per_seed)
    with open(attacked.run / "robustness.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 and float(rows[4]["iqm"]) == summary["cells"][4]["return"]["iqm"]


def test_newest_run_seeds_and_several_runs(rlx, tiny_runs, real_figures):
    newest = rlx("evaluate", f"outputs={tiny_runs}", "episodes=2")
    assert newest.code == 0 and len(newest.summary["seeds"]) == 2  # the CartPole run came last
    runs = sorted((tiny_runs / "train/hdqn-acrobot").iterdir())
    some = rlx("evaluate", runs[0], "seeds=1:3", "episodes=2", "checkpoint=300")
    assert some.summary["seeds"] == [1, 2]
    both = rlx("attack", *runs, "eps=0.01", "episodes=2", "modes=goal", "attack=fgsm")
    assert both.summary["seeds"] == [0, 1, 2, 7, 8]
    picked = rlx(
        "attack", *runs, "eps=0.01", "episodes=2", "modes=goal", "seeds=[8,1]", "attack=fgsm"
    )
    assert picked.summary["seeds"] == [8, 1]
    all_five, two = (np.load(attack.run / "returns.npz")["goal"][:, 0] for attack in (both, picked))
    same = (two == all_five[[4, 1]]).sum()
    assert same >= 3, "of 4 episodes, in a smaller batch: rounding may break a tie"
    strong = rlx(
        "attack", *runs, "attack=pgd", "attack.steps=2", "eps=0.01", "episodes=2", "modes=goal"
    )
    compared = rlx("report", both.run, strong.run, "mode=goal")
    assert compared.code == 0 and (compared.run / "report.png").stat().st_size > 5000
    assert np.array(compared.summary["rank"]).shape == (2, 5)
    assert "attacks other seeds" in rlx("report", both.run, picked.run, "mode=goal").err
    wide = rlx(
        "attack",
        *runs,
        "eps=0.01",
        "episodes=2",
        "modes=goal",
        "scale=[1,1,1,1,1,1]",
        "attack=fgsm",
    )
    assert "has another unit of eps" in rlx("report", both.run, wide.run, "mode=goal").err
    for arguments in (("report", both.run, runs[0]), ("evaluate", both.run)):
        assert "made by rlx" in rlx(*arguments).err
    assert rlx("report", both.run, strong.run).code == 0, "without a mode: both"
    learning = rlx("report", *runs)
    assert learning.code == 0 and "seeds=7:9" in learning.out
    assert (learning.run / "report.png").stat().st_size > 5000
    every = rlx("report", *runs, *(tiny_runs / "train/dqn-cartpole").iterdir())
    assert every.code == 0
    for words in ("hdqn-acrobot seeds=3", "dqn-cartpole", "(from 475)"):
        assert words in every.out
    twice = rlx("attack", runs[0], runs[0], "eps=0.01", "attack=fgsm")
    assert twice.code == 2 and "seed 0 is also in" in twice.err


def test_noise_modes_and_std_scale(rlx, tiny_runs):
    result = rlx(
        "attack",
        tiny_runs / "train/hdqn-acrobot",
        "attack=noise",
        "eps=[0,0.3]",
        "scale=std",
        "episodes=2",
    )
    assert {cell["head"] for cell in result.summary["cells"]} == {"same", "diff", "goal", "action"}
    assert len(result.summary["scale"]) == 6 and min(result.summary["scale"]) > 0
    flat = rlx(
        "attack",
        tiny_runs / "train/dqn-cartpole",
        "eps=0.1",
        "scale=[0.1,1,0.1,1]",
        "episodes=2",
        "attack=fgsm",
    )
    assert {cell["head"] for cell in flat.summary["cells"]} == {"action"}


def test_multirun_makes_one_run_per_combination(rlx):
    result = rlx(
        "train",
        "-m",
        "env=acrobot,cartpole",
        "agent.learning_rate=1e-4,2.5e-4",
        *TINY,
        "seeds=1",
        "agent.hidden=[8]",
    )
    assert result.code == 0
    runs = sorted(Path("outputs/train").glob("*/*"))
    assert [run.parent.name for run in runs] == ["hdqn-acrobot"] * 2 + ["hdqn-cartpole"] * 2
    assert "sweep    4 of 4 · about " in result.out
    assert "left: env=cartpole agent.learning_rate=0.00025\n" in result.out


def test_the_newest_weights_are_kept_where_asked(rlx):
    arguments = (
        "train",
        "agent=dqn",
        "env=cartpole",
        *TINY,
        "seeds=3",
        "eval_every=60",
        "agent.learning_starts=64",
    )
    arguments += ("agent.average_tau=1", "agent.learning_rate=0.01")  # what is learnt changes fast
    best, newest = (rlx(*arguments, f"keep={which}").summary for which in ("best", "newest"))
    assert newest["kept"]["step"] == [600] * 3 != best["kept"]["step"]


@pytest.mark.rounding
def test_stop_rule_keeps_each_seed_where_it_stopped(rlx):
    arguments = [
        "train",
        "agent=dqn",
        "env=cartpole",
        "steps=3000",
        "num_envs=1",
        "eval_every=1000",
        "eval_episodes=2",
    ]
    arguments += ["agent.hidden=[16]", "agent.learning_starts=64"]
    give_up = "give_up_from: 400, give_up_every: 10, give_up_below: 0"
    arguments.append(f"stop={{window: 5, solved: 25, {give_up}, episodes: 500}}")
    slow = "agent.learning_rate=1e-7"  # so that rounding does not grow to other actions
    result = rlx(*arguments, slow, "seeds=3")
    assert result.code == 0 and "stop rule" in result.out
    kept = result.summary["kept"]
    assert any(kept["solved"])
    for value, solved in zip(kept["value"], kept["solved"], strict=True):
        assert value >= 25 or not solved
    assert len(set(kept["step"])) > 1
    alone = rlx(*arguments, slow, "seeds=[1]")
    assert alone.summary["kept"]["step"] == [kept["step"][1]]
    weights = [
        load_file(run / "checkpoints/best/agent.safetensors") for run in (result.run, alone.run)
    ]
    for name, value in weights[1].items():
        np.testing.assert_allclose(weights[0][name][1:2], value, rtol=1e-4, atol=1e-6)


BAD = [
    (["trian"], "Did you mean 'train'?"),
    (["train", "seedz=3"], "Did you mean 'seeds'?"),
    (["train", "+foo=1"], "foo: unknown key"),
    (["train", "agent.learning_rat=1"], "Did you mean 'agent.learning_rate'?"),
    (["train", "+agent.foo=1"], "agent.foo: unknown key"),
    (["train", "agent=hdqm"], "Did you mean 'hdqn'?"),
    (["train", "env=acrobat"], "Did you mean 'acrobot'?"),
    (["train", "protocol=sauce"], "Did you mean 'source'?"),
    (["train", "experiment=sorce"], "Did you mean 'source'?"),
    (["train", "steps=many"], "steps=many: expected a whole number"),
    (["train", "steps=0"], "steps=0: must be at least 1"),
    (["train", "agent.learning_rate=-1"], "agent.learning_rate=-1: must be above 0"),
    (["train", "agent.learning_rate=nan"], "agent.learning_rate=nan: expected a finite number"),
    (["train", "agent.discount=2"], "agent.discount=2: must be from 0 to 1"),
    (["train", "agent.hidden=[-3]"], "agent.hidden=-3: must be at least 1"),
    (["train", "agent.replay_ratio=-1"], "agent.replay_ratio=-1: must be above 0"),
    (["train", "device.threads=0"], "device.threads=0: must be at least 1"),
    (["train", "env.max_episode_steps=0"], "env.max_episode_steps=0: must be at least 1"),
    (["train", "keep=latest"], "keep=latest: unknown. Did you mean 'best'?"),
    (["bench", "seconds=-1"], "seconds=-1: must be above 0"),
    (["--completion", "tcsh"], "Choose from: bash, fish, zsh"),
    (["train", "agent.hidden=64"], "agent.hidden=64: expected a list"),
    (["train", "agent.double=3"], "agent.double=3: expected true or false"),
    (["train", "agent.optimizer=adm"], "Did you mean 'adam'?"),
    (["train", "agent.goals=state"], "Did you mean 'states'?"),
    (["train", "env=gym"], "env.id: missing"),
    (["train", "env=gym", "env.id=CartPoel-v1"], "Did you mean 'CartPole-v1'?"),
    (["train", "env=gym", "env.id=Pendulum-v1"], "Discrete actions"),
    (["train", "env.gravty=1"], "Did you mean 'env.gravity'?"),
    (["train", "seeds=0"], "seeds=0"),
    (["train", "eval_env={gravty: 1}"], "eval_env.gravty: unknown key. Did you mean 'eval_env.gra"),
    (["train", "agent={hiden: [3]}"], "agent.hiden: unknown key. Did you mean 'agent.hidden'?"),
    (["train", "agent._target_=rlx.agents.dqn.Nothing"], "cannot be imported"),
    (["train", "agent._target_=rlx.runs.run.Run"], "expected a subclass of rlx.agent.Agent"),
    (["train", "device=cuda"], "device=cuda"),
    (["train", "outputs=/proc/nowhere"], "outputs=/proc/nowhere:"),
    (
        ["train", "agent=dqn", "protocol=source"],
        "no settings for dqn-acrobot. "
        "There are some for: actenv-cartpole, fgsm, hdqn-acrobot, noise",
    ),
    (["train", "env=cartpole", "protocol=source"], "no settings for hdqn-cartpole"),
    (["train", "num_envs=2", "protocol=source"], "num_envs=2: a stop rule needs num_envs=1"),
    (["train", "some/path"], "takes no run; write key=value, as in: rlx train agent=dqn"),
    (
        ["study", "experiment=defences_hdqn", "steps"],
        "takes no run; write key=value, as in: rlx study experiment=cartpole_robustness",
    ),
    (["study", "experiment=atari100k"], "experiment=atari100k: is for rlx train."),
    (["train", "experiment=defences_hdqn"], "experiment=defences_hdqn: is for rlx study."),
    (["train", "-m", "experiment=source,defences"], "experiment=defences: is for rlx study."),
    (["study", "experiment=xyz"], "no such option. Choose from: cartpole_robustness, defences, "),
    (["train", "experiment=xyz"], "no such option. Choose from: atari100k, classic_dqn, "),
    (["study", "experiment=defences_hdqn", "outputs="], "rlx: outputs=: expected a folder."),
    (["train", "-m", "seeds=1,2", "outputs="], "rlx: outputs=: expected a folder."),
    (["evaluate", "zoo:"], "run=zoo:: name one of its agents, as in zoo:dqn-cartpole. "),
    (["show", "zoo:"], "All: rlx list zoo:"),
    (["evaluate", "zoo:xyz"], "run=zoo:xyz: no agent of the zoo. All: rlx list zoo:"),
    (["attack", "zoo:q_table-taxi"], "CartPole's; those of this env are Discrete(500), where none"),
    (["attack", "nowhere"], "no such run"),
    (["attack"], "no run yet"),
    (["evaluate", "."], "neither a run nor a folder"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=lambda x: " ".join(x) if isinstance(x, list) else ""
)
def test_bad_input_is_explained_and_writes_nothing(arguments, message, rlx, tmp_path):
    import torch

    if "device=cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    result = rlx(*arguments)
    assert result.code == 2 and message in result.err, result.err
    assert len(result.err.splitlines()) <= 20 and "Traceback" not in result.err
    assert files(tmp_path) == set()


@pytest.mark.parametrize("value", ["0:0.1:0.1", "0.1", "x"])
def test_a_folder_that_hides_a_plain_key_is_named(value, rlx, tmp_path):
    (tmp_path / "conf/eps").mkdir(parents=True)
    (tmp_path / "conf/attack").mkdir()
    result = rlx("attack", f"eps={value}", "attack=fgsm")
    assert result.code == 2 and result.err.count("\n") == 1
    assert f"{tmp_path / 'conf/eps'}: a folder of this name hides the key 'eps'" in result.err
    assert "no run yet" in rlx("attack", "attack=fgsm").err, "an option's folder hides nothing"


def test_keys_of_the_env_to_be_evaluated_in_may_be_set_together(rlx):
    keys = ("agent=dqn", "env=cartpole", "seeds=1", *TINY)
    result = rlx("train", *keys, "eval_env={gravity: 20.0}")
    assert result.code == 0, result.err
    assert OmegaConf.load(result.run / "config.yaml").eval_env == {"gravity": 20.0}


BAD_ATTACKS = [
    (["eps=0.03:0:0.01"], "eps=0.03:0:0.01"),
    (["eps=-0.1"], "cannot be negative"),
    (["eps=[]"], "the grid is empty"),
    (["eps=0.1", "attack=fgms"], "Did you mean 'fgsm'?"),
    (["eps=0.1", "attack.loss=margn"], "Did you mean 'margin'?"),
    (["eps=0.1", "modes=gaol"], "Did you mean 'goal'?"),
    (["eps=0.1", "scale=[1,2]"], "6 numbers"),
    (["eps=0.1", "seeds=7"], "not in"),
    (["eps=0.1", "checkpoint=bset"], "no checkpoint 'bset'"),
    (["eps=0.1", "attack.target=5"], "choices 0 to 2"),
    (["eps=0.1", "attack.target=-1"], "attack.target=-1: must be at least 0"),
    (["eps=0.1", "attack=pgd", "protocol=source"], "no settings for pgd"),
    (["eps=0.1", "attack=planned", "attribution=0.1"], "attack=planned plays whole episodes"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD_ATTACKS, ids=lambda x: " ".join(x) if isinstance(x, list) else ""
)
def test_bad_attacks_are_explained(arguments, message, rlx, tiny_runs, tmp_path):
    if not any(argument.startswith("attack=") for argument in arguments):
        arguments = ["attack=fgsm", *arguments]
    result = rlx("attack", tiny_runs / "train/hdqn-acrobot", "episodes=2", *arguments)
    assert result.code == 2 and message in result.err, result.err
    assert "Traceback" not in result.err and files(tmp_path) == set()


def test_infinite_bounds_are_refused_as_a_scale(rlx, tiny_runs, tmp_path):
    run = tiny_runs / "train/dqn-cartpole"
    result = rlx("attack", run, "eps=0.1", "attack=fgsm", "scale=bounds")
    assert (
        result.code == 2
        and "scale=bounds: components [1, 3]" in result.err
        and files(tmp_path) == set()
    )


@pytest.mark.parametrize("command", [("attack", "attack=fgsm"), ("certify",)], ids=" ".join)
@pytest.mark.parametrize(
    ("run", "scale"), [("dqn-cartpole", "reference"), ("hdqn-acrobot", "bounds")]
)
def test_the_scale_is_the_envs_unless_another_is_given(command, run, scale, rlx, tiny_runs):
    """Its bounds, or where one is infinite its reference; the run says which."""
    words = (tiny_runs / "train" / run, "eps=[0,0.01]", "episodes=1")
    default = rlx(*command, *words)
    given = rlx(*command, *words, f"scale={scale}")
    assert default.code == 0 == given.code, default
    assert f"scale: {scale}" in (default.run / "config.yaml").read_text()
    assert default.summary["scale"] == given.summary["scale"]


@pytest.fixture
def broken(tiny_runs, tmp_path):
    """A copy of a good run, to be broken."""
    import shutil

    run = sorted((tiny_runs / "train/hdqn-acrobot").iterdir())[0]
    return Path(shutil.copytree(run, tmp_path / "broken"))


def test_broken_checkpoints_are_named(broken, rlx):
    weights = broken / "checkpoints/best/agent.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    result = rlx("evaluate", broken)
    assert result.code == 2 and str(weights) in result.err and "truncated" in result.err
    weights.write_bytes(whole)
    flipped = bytearray(whole)
    flipped[-5] ^= 4
    weights.write_bytes(flipped)
    result = rlx("evaluate", broken)
    assert result.code == 2 and "checksum" in result.err
    weights.write_bytes(whole)
    tensors = load_file(weights)
    name = next(n for n in tensors if n.endswith("layers.0.weight"))

    def rewrite(changed):  # with a checksum that fits
        save_file(changed, weights)
        state = json.loads((weights.parent / "state.json").read_text())
        state["sha256"][weights.name] = hashlib.sha256(weights.read_bytes()).hexdigest()
        (weights.parent / "state.json").write_text(json.dumps(state))

    rewrite(tensors | {name: tensors[name][:, :-1].contiguous()})
    result = rlx("evaluate", broken)
    assert result.code == 2 and name in result.err and str(list(tensors[name].shape)) in result.err
    rewrite({n: t for n, t in tensors.items() if n != name})
    result = rlx("evaluate", broken)
    assert result.code == 2 and f"'{name}' is missing" in result.err
    weights.unlink()
    assert "unreadable" in rlx("evaluate", broken).err
    (broken / "checkpoints").rename(broken / "gone")
    result = rlx("evaluate", broken)
    assert result.code == 2 and "no checkpoint 'best'" in result.err
    (broken / "config.yaml").write_text("agent: [")
    result = rlx("evaluate", broken)
    assert result.code == 2 and "config.yaml: cannot be read" in result.err
    assert "Traceback" not in result.err


def test_unknown_format_version_is_refused(broken, rlx):
    meta = json.loads((broken / "meta.json").read_text())
    (broken / "meta.json").write_text(json.dumps(meta | {"format": 99}))
    result = rlx("evaluate", broken)
    assert result.code == 2 and "format 99" in result.err


def test_a_loss_that_explodes_stops_the_run_and_names_it(rlx):
    result = rlx(
        "train",
        "agent=dqn",
        "env=cartpole",
        *TINY,
        "seeds=2",
        "agent.learning_rate=1e38",
        "agent.learning_starts=64",
    )
    assert result.code == 1
    for words in ("non-finite at step", "seed 0", "loss/q"):
        assert words in result.err
    (run,) = Path("outputs/train/dqn-cartpole").iterdir()
    assert json.loads((run / "meta.json").read_text())["status"] == "failed"
    assert not (run / "summary.json").exists()


def test_help_version_and_completion(rlx, monkeypatch):
    assert "attack" in rlx("--help").out and rlx().code == 0
    assert rlx("--version").out.startswith("rlx ")
    help_text = rlx("train", "--help").out
    assert f"agent: {', '.join(AGENTS)}" in help_text and "protocol: corrected, source" in help_text
    assert "# Greedy evaluation while learning" in help_text
    assert "num_envs: 32" in help_text, "as tuned"
    assert "target: " in rlx("train", "agent=q_table", "--help").out

    def complete(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        return rlx("-sc", "query=bash").out.split()

    assert "-F hydra_bash_completion rlx\n" in rlx("--completion", "bash").out
    assert complete("rlx tr") == ["train"]
    assert complete("rlx train agent=e") == ["agent=efficientzero"]
    assert complete("rlx attack attack=p") == ["attack=pgd", "attack=planned"]


def test_torch_is_not_imported_for_help_or_a_typo():
    code = "import sys; from rlx import cli; cli.run({!r}); sys.exit('torch' in sys.modules)"
    for arguments in (["--help"], ["train", "--help"], ["train", "seedz=1"], ["trian"]):
        line = [sys.executable, "-c", code.format(arguments)]
        assert subprocess.run(line, capture_output=True).returncode == 0


ATTACKED = [(agent, env) for agent, env in PAIRS if env == "acrobot"]
ATTACKED += [("dqn", "chain"), ("q_table", "chain"), ("ppo", "pendulum")]


@pytest.mark.parametrize(("agent", "env"), ATTACKED)
def test_every_agent_is_attacked_or_says_why_not(agent, env, rlx):
    run = rlx(
        "train", f"agent={agent}", f"env={env}", *ENVS[env], *TINY, "seeds=2", *small(agent)
    ).run
    # Those turn late, so little trained.
    radius = 2 if agent in ("actenv", "efficientzero", "hdqn_regions") else 0.5
    quick = ("scale=std", f"eps=[0,{radius}]", "episodes=3")
    if env == "chain":
        result = rlx("attack", run, *quick)
        assert result.code == 2 and "needs observations of numbers or images" in result.err
        return
    strong = ["attack=pgd", "attack.steps=3"]
    if env == "pendulum":
        strong.append("attack.loss=distance")
    result = rlx("attack", run, *quick, *strong)
    assert result.code == 0
    cells = result.summary["cells"]
    if env == "pendulum":
        attacked = [cell["return"] for cell in cells if cell["eps"] > 0]
        assert attacked != [result.summary["clean"]]
        for wrong, message in (
            ("attack=fgsm", "use attack=pgd attack.loss=distance"),
            ("attack=pgd", "attack.loss=distance"),
        ):
            refused = rlx("attack", run, *quick, wrong)
            assert refused.code == 2 and message in refused.err
        assert rlx("attack", run, *quick, "attack=fgsm", "attack.loss=distance").code == 2
    else:
        assert any(cell["flip_rate"] for cell in cells)
        assert rlx("attack", run, *quick, *strong, "attack.loss=distance").code == 2


@pytest.mark.parametrize("agent", ["dqn", "ppo"])
def test_images_are_attacked(agent, rlx):
    stack = "+env.stack=2" if agent == "ppo" else "agent.stack=2"
    run = rlx(
        "train", f"agent={agent}", "env=cartpole_frames", stack, *TINY, *small(agent), "seeds=2"
    )
    for attack in ("fgsm", "pgd"):
        result = rlx("attack", run.run, f"attack={attack}", "eps=[0,0.5]", "episodes=2")
        cells = result.summary["cells"]
        assert result.code == 0 and cells[1]["flip_rate"] > 0.02, cells


def test_a_board_is_the_same_board_until_a_stone_is_half_gone(rlx):
    run = rlx(
        "train",
        "agent=self_play",
        "env=tic_tac_toe",
        *TINY,
        *small("self_play"),
        "seeds=2",
        "agent.lookahead=2",
    ).run
    result = rlx("attack", run, "attack=noise", "eps=[0,1e-6,2]", "episodes=20")
    cells = [cell for cell in result.summary["cells"] if cell["head"] == "action"]
    assert [cell["flip_rate"] > 0.05 for cell in cells] == [False, False, True]


@pytest.mark.parametrize("agent", ["dqn", "ppo"])
def test_other_agents_play_games_against_a_given_opponent(agent, rlx):
    result = rlx(
        "train",
        f"agent={agent}",
        "env=tic_tac_toe",
        "env.opponent=random",
        *TINY,
        *small(agent),
        "seeds=2",
    )
    assert result.code == 0 and result.summary["reward_threshold"] == 0.9


def test_unknown_keys_of_vector_envs_are_named(rlx):
    result = rlx("train", "env=lunar_lander", "+env.kwarg=1")
    assert result.code == 2 and "env.kwarg: unknown key" in result.err and "kwargs" in result.err
