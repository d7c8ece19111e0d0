"""Writes the generated parts of the pages in docs/agents, docs/attacks, docs/how-to/zoo.md.

    python docs/generate.py            rewrite what stands between the markers
    python docs/generate.py --check    exit code 1, and the names of the pages that are out of date

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`. The pages are
committed, so that they can be read without building the site.
"""

import ast
import dataclasses
import functools
import importlib
import itertools
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from rlx import experiment
from rlx.agent import Agent, OfflineAgent, Policy, Scores, Spec
from rlx.commands.list import listed
from rlx.commands.show import line_of
from rlx.composing import compose_config
from rlx.conf import group_files
from rlx.config import build, load_class, plain
from rlx.errors import ConfigError
from rlx.objective import LOSSES
from rlx.runs.finding import ZOO
from rlx.show import console
from rlx.threat import Adversary, Budget, Threat

DOCS = Path(__file__).resolve().parent
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
WORDS = {int: "whole number", float: "number", bool: "true or false", str: "word"}

KINDS = {
    "sees numbers (Box)": ["env=cartpole"],
    "sees an index (Discrete)": ["env=chain"],
    "sees images of 16 pixels a side and more": ["env=cartpole_frames"],
    "acts in a Box": ["env=pendulum"],
    "plays board games": ["env=tic_tac_toe"],
}
"""What an env can be like → the smallest env in rlx that is."""
SMALL = {"buffer_size": 512, "learning_starts": 64}
"""Keys that change nothing but memory."""


def main() -> int:
    """Returns the exit code."""
    check = "--check" in sys.argv
    stale = []
    for page, parts in pages().items():
        text = page.read_text()
        new = rewritten(text, parts)
        if new != text:
            stale.append(page)
            if not check:
                page.write_text(new)
    for page in stale:
        name = page.relative_to(DOCS.parent)
        print(f"{name}: out of date; run: python docs/generate.py" if check else f"wrote {name}")
    return 1 if check and stale else 0


def rewritten(text: str, parts: dict[str, str]) -> str:
    """A page's `text` with its generated parts as in `parts`."""

    def current(match: re.Match[str]) -> str:
        return match[1] + parts[match[2]] + match[3]

    return PART.sub(current, text)


def pages() -> dict[Path, dict[str, str]]:
    """Page → name of a generated part → its text."""
    found = {}
    for name in group_files("agent"):
        found[DOCS / "agents" / f"{name}.md"] = agent_parts(name)
    for name in group_files("attack"):
        found[DOCS / "attacks" / f"{name}.md"] = attack_parts(name)
    found[DOCS / "how-to/zoo.md"] = {"zoo": zoo()}
    return found


def agent_parts(name: str) -> dict[str, str]:
    """The parts `use`, `keys` and `tuned` of an agent's page."""
    config = compose_config("train", [f"agent={name}", "tuned=none"])
    node: Any = OmegaConf.to_container(config.agent)  # ${steps} is shown as it is written
    kind: Any = load_class(node, "agent", Agent)
    return {
        "use": table(["question", "answer"], agent_use(name, kind)),
        "keys": keys("agent", kind.config_type, node),
        "tuned": tuned(name),
    }


def attack_parts(name: str) -> dict[str, str]:
    """The parts `use` and `keys` of an attack's page."""
    node = plain(compose_config("attack", [f"attack={name}"]).attack)
    kind: Any = load_class(node, "attack", Threat)
    return {
        "use": table(["question", "answer"], attack_use(kind, node)),
        "keys": keys("attack", kind, node),
    }


# Can I use it?


def agent_use(name: str, kind: Any) -> list[list[str]]:
    """Rows of (question, answer): tried out, by making a policy for an env of each kind."""
    fits = {what: fit(name, kind, overrides) for what, overrides in KINDS.items()}
    rows = [[what, answer] for what, (answer, _, _) in fits.items()]
    if all(answer == "no" for _, answer in rows):
        raise ConfigError(f"agent={name}: fits none of the envs that it was tried in.")
    heads = [head for _, found, _ in fits.values() for head in found]
    names = list(dict.fromkeys(heads))
    carries = sorted({entry for _, _, carry in fits.values() for entry in carry})
    memory = ", ".join(f"`{entry}`" for entry in carries) or "nothing"
    if "recurrent" in {field.name for field in dataclasses.fields(kind.config_type)}:
        memory += "; a GRU's state with `agent.recurrent=32`"
    flat = fits["sees numbers (Box)"][1] or fits["plays board games"][1]
    attacked = (
        ", ".join(f"`{head}`" for head in names) if flat else "none: there is nothing near an index"
    )
    keeps = (
        "newest"
        if kind.keeps_newest
        else "those of its best evaluation (`keep=newest`: the newest)"
    )
    return [
        *rows,
        ["carries from step to step", memory],
        [
            "learns from a data set (`data=…`)",
            "yes, only" if issubclass(kind, OfflineAgent) else "no",
        ],
        ["heads that `rlx attack` can attack", attacked],
        ["weights that a run keeps", keeps],
    ]


def fit(name: str, kind: Any, overrides: list[str]) -> tuple[str, tuple[str, ...], list[str]]:
    """("yes" or "no", heads, entries of the carry) of an agent in the env of `overrides`."""
    node: Any = OmegaConf.to_container(composed(f"agent={name}").agent)
    spec = experiment.env_spec(composed(*overrides).env)
    try:
        policy = make_policy(kind, node, spec)
    except ConfigError:
        return "no", (), []
    return "yes", policy.heads, list(policy.initial_carry(1))


@functools.cache
def composed(*overrides: str) -> DictConfig:
    """The config of a training, without tuned settings."""
    return compose_config("train", ["tuned=none", *overrides])


def make_policy(kind: Any, node: dict[str, Any], spec: Spec) -> Policy:
    """The policy of an agent of one seed; ConfigError where it does not fit the env."""
    node = {key: resolved(value) for key, value in node.items()}
    node |= {key: value for key, value in SMALL.items() if key in node}
    seeds = torch.zeros(1, dtype=torch.int64)
    if not issubclass(kind, OfflineAgent):
        return experiment.make_agent(node, spec, seeds, 8).policy
    fits = isinstance(spec.observation_space, kind.observations)
    if not (fits and isinstance(spec.action_space, kind.actions)):
        raise ConfigError(f"agent: {kind.__name__} does not fit.")
    return kind.policy_type(build(kind.config_type, node, "agent"), spec, seeds)


def resolved(value: Any) -> Any:
    """`value`; a 1 in place of what another key of the run says."""
    return 1 if isinstance(value, str) and value.startswith("${") else value


def attack_use(kind: Any, node: dict[str, Any]) -> list[list[str]]:
    """Rows of (question, answer): tried out on a linear policy."""
    attack = build(kind, node, "attack")
    if isinstance(attack, Adversary):
        return attack_modes(attack)
    losses = list(LOSSES) if "loss" in node else [""]
    answers = {}
    for continuous in (False, True):
        works = [loss for loss in losses if attacks(kind, node, loss, continuous)]
        named = ", ".join(f"`attack.loss={loss}`" for loss in works if loss)
        answers[continuous] = f"yes: {named}" if named else ("yes" if works else "no")
    return [
        ["discrete choices", answers[False]],
        ["continuous actions", answers[True]],
        *attack_modes(attack),
    ]


def attack_modes(attack: Threat) -> list[list[str]]:
    """Rows of (question, answer): which heads it attacks together."""
    one = ", ".join(f"`{mode}`" for mode in attack.modes(("action",)))
    two = ", ".join(f"`{mode}`" for mode in attack.modes(("goal", "action")))
    return [
        ["`modes` of an agent with the head `action`", one],
        ["`modes` of one with the heads `goal` and `action`", two],
    ]


def attacks(kind: Any, node: dict[str, Any], loss: str, continuous: bool) -> bool:
    """Whether the attack with this loss takes a policy with (dis)continuous choices."""
    values = node | ({"loss": loss} if loss else {})
    bounds = (torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0])) if continuous else None
    scores = Scores(lambda obs: obs * torch.tensor([1.0, 2.0]), bounds)
    obs = torch.ones(1, 1, 2)
    limits = torch.full((2,), torch.inf)
    budget = Budget(torch.full_like(obs, 0.1), -limits, limits)
    try:
        build(kind, values, "attack").perturb(
            scores, obs, budget, lambda count: torch.full((1, 1, count), 0.25)
        )
    except ConfigError:
        return False
    return True


# Keys


def keys(group: str, kind: type, node: dict[str, Any]) -> str:
    """A table of the fields of the dataclass `kind`, with the values of the YAML file."""
    texts = field_docs(kind)
    hints = typing.get_type_hints(kind, include_extras=True)
    rows = []
    for field in dataclasses.fields(kind):
        value = inline(node[field.name]) if field.name in node else ""
        name = f"`{group}.{field.name}`"
        rows.append([name, words(hints[field.name]), value, texts.get(field.name, "")])
    return table(["key", "type", "default", "meaning"], rows)


def field_docs(kind: type) -> dict[str, str]:
    """Field → the text that stands below it, of the class and those that it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            found |= own_field_docs(base)
    return found


def own_field_docs(kind: type) -> dict[str, str]:
    """As `field_docs`, of the class body alone."""
    tree = ast.parse(Path(importlib.import_module(kind.__module__).__file__ or "").read_text())
    (body,) = [
        node.body
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    ]
    found = {}
    for node, below in itertools.pairwise(body):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[node.target.id] = " ".join(str(below.value.value).split())
    return found


def words(hint: Any) -> str:
    """A type in words, and the range that its annotation names."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Annotated:
        return ", ".join([words(arguments[0]), *map(str, arguments[1:])])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        known = [words(one) for one in arguments if one is not type(None)]
        return "; or ".join([*known, *["null"] * (len(known) < len(arguments))])
    if typing.get_origin(hint) in (list, tuple):
        return f"list, each a {words(arguments[0])}"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def inline(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, float):
        return f"`{value:g}`"
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()
    return f"`{text.removesuffix('...').strip()}`".replace("'", "")


def tuned(name: str) -> str:
    """A line that names the tuned settings of an agent."""
    names = [option for option in group_files("tuned") if option.partition("-")[0] == name]
    if not names:
        return "No tuned settings yet: every env has the defaults above.\n"
    links = [f"[`{option}`](../../conf/tuned/{option}.yaml)" for option in names]
    return f"Tuned settings, used by themselves for these envs: {', '.join(links)}.\n"


def zoo() -> str:
    """The agents that come with rlx."""
    rows = []
    for entry in sorted(listed([ZOO]), key=lambda entry: entry.name):
        interval = console.interval_text(entry.estimate["iqm"], entry.estimate["ci95"])
        worst = console.number(min(entry.estimate["per_seed"]))
        commit = entry.meta["commit"]
        rows.append([f"`zoo:{entry.name}`", f"`{line_of(entry)}`", interval, worst, commit])
    return table(["name", "trained by", "return", "worst seed", "commit"], rows)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


if __name__ == "__main__":
    sys.exit(main())
