"""Serves another program's training to `rlx bench`: a process of an interpreter without rlx.

    python peer.py peer_name.py

It reads lines of JSON and answers each by one. The first line has the settings, as
`rlx/benchmarks/peers.py` makes them; every other one asks for a measurement. A file peer_name.py,
which imports nothing of rlx, has:

    PROGRAM: what it is called
    NEEDS: packages that the interpreter must have
    ONE_SEED: whether it trains one seed at a time
    refusal(settings): why it cannot train this; None: it can
    differences(settings): how its training differs from rlx's, in few words each
    make(settings, seeds): a function that trains for a while, and returns the environment steps
"""

import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any


def main() -> None:
    """Answer until there are no more questions."""
    # What libraries print must not stand between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    if settings["core"] is not None:
        os.sched_setaffinity(0, {settings["core"]})
    clock = time.process_time if settings["clock"] == "cpu" else time.perf_counter
    peer = runpy.run_path(sys.argv[1])
    trainings = {}
    first_s = {}
    for seeds in settings["seeds"]:
        began = time.perf_counter()
        trainings[seeds] = peer["make"](settings, seeds)
        trainings[seeds]()
        first_s[seeds] = time.perf_counter() - began
    facts = {"version": version(peer["NEEDS"][0].replace("_", "-")), "first_s": first_s}
    print(json.dumps(facts), file=answers)
    for line in sys.stdin:
        question = json.loads(line)
        speed = steps_per_s(trainings[question["seeds"]], question["seconds"], clock)
        print(json.dumps({"steps_per_s": speed}), file=answers)


def steps_per_s(advance: Callable[[], int], seconds: float, clock: Callable[[], float]) -> Any:
    """Environment steps per second, of whole calls of `advance`."""
    steps = 0
    began = clock()
    while clock() - began < seconds:
        steps += advance()
    return steps / (clock() - began)


if __name__ == "__main__":
    main()
