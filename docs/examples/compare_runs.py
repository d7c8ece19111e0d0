"""Two settings of an agent side by side, with NumPy alone."""

# %% Train both on the same seeds.
import numpy as np

import rlx

runs = {}
for rate in (1e-3, 3e-4):
    runs[rate] = rlx.train(
        agent="dqn",
        env="cartpole",
        seeds=3,
        steps=15_000,
        eval_every=5_000,
        **{"agent.learning_rate": rate},
    )


# %% A curve is an array [evaluations, seeds] of what metrics.jsonl calls return/mean.
def curve(run):
    rows = run.metrics()
    steps = sorted({row["step"] for row in rows})
    values = {(row["step"], row["seed"]): row["return/mean"] for row in rows}
    return steps, np.array([[values[step, seed] for seed in run.seeds] for step in steps])


# %% The mean over seeds, and the difference seed by seed.
steps, fast = curve(runs[1e-3])
_, slow = curve(runs[3e-4])
for step, one, other in zip(steps, fast, slow, strict=True):
    print(f"{step:>6}  {one.mean():.0f}  {other.mean():.0f}  {np.round(one - other)}")

# %% The reported result is another one: new episodes, of the weights that each seed keeps.
for rate, run in runs.items():
    print(rate, run.summary["return"]["iqm"], run.summary["return"]["ci95"])
