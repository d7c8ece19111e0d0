"""The scripts of docs/examples run from top to bottom, each in a folder of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
def test_an_example_runs(script, tmp_path):
    folder = tmp_path / "examples"
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("__pycache__", "outputs"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, f"{script}.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert (folder / SCRIPTS[script]).exists()
