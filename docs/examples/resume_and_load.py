"""Go on with a run, and load what lies on disk."""

# %% A run saves a checkpoint every `checkpoint_every` steps.
import subprocess
import sys

import rlx

settings = {"steps": 5_000, "eval_every": 2_500, "checkpoint_every": 2_500}
run = rlx.train(agent="dqn", env="cartpole", seeds=2, **settings)

# %% Going on is a command; it ends, bit for bit, where a run of 10,000 steps would have ended.
subprocess.run([sys.executable, "-m", "rlx", "resume", str(run.path), "steps=10000"], check=True)

# %% A run is loaded by its folder, or by one above it: the newest finished run is meant.
run = rlx.load("outputs/train/dqn-cartpole")
print(run.seeds, run.config.steps, max(row["step"] for row in run.metrics()))

# %% `policy` is of the first seed and its best weights, or of another one at another step.
early = rlx.load(run.path, checkpoint=2_512, seed=1)
env = run.make_env()
obs, _ = env.reset(seed=0)
print(run.policy.act(obs), early.policy.act(obs))

# %% A seed or a step that is not there is refused by name.
try:
    print(rlx.load(run.path, seed=7).policy)
except rlx.ConfigError as error:
    print(error)
