"""The scripts of docs/examples run from top to bottom, each in a folder of its own."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from rlx import conf

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs/examples"
SCRIPTS = {
    "attack_study": "robustness.png",
    "compare_runs": "outputs",
    "own_agent": "outputs",
    "resume_and_load": "outputs",
    "train_and_look": "curves.png",
}
"""Each script, and something that it leaves in the folder where it runs."""

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the docs are not installed")


def test_these_are_all():
    cells = {file.stem for file in EXAMPLES.glob("*.py") if "# %%" in file.read_text()}
    assert cells == set(SCRIPTS)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.stem)
def test_an_example_can_be_read_at_a_glance(file):
    assert len(file.read_text().splitlines()) <= 40


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_example_runs(script, tmp_path, monkeypatch):
    folder = tmp_path / "examples"
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("__pycache__", "outputs"))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of a script's own process
    file = folder / f"{script}.py"
    if script != "resume_and_load":  # which names a checkpoint by its step
        file.write_text(re.sub(r"(\d)_000\b", r"\1_00", file.read_text()))  # a tenth of the steps
    try:
        runpy.run_path(str(file))
    finally:
        conf.use(None)
        sys.modules.pop("patient", None)
    assert (folder / SCRIPTS[script]).exists()
