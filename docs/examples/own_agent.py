"""An agent of one's own: its class is in patient.py, its settings in conf/agent/patient.yaml.

Both lie beside this script, which is run from their folder.
"""

# %% The contract, tried out in seconds; ConfigError says what does not hold.
import rlx

rlx.check_agent("patient")

# %% Train it as any other agent, with the settings that were tuned for its parent.
shared = {"env": "cartpole", "tuned": "dqn-cartpole", "seeds": 2, "eval_every": 5_000}
patient = rlx.train(agent="patient", steps=10_000, **shared)
print(patient.config.agent.patience, patient.summary["return"]["iqm"])

# %% Its keys are checked like all others.
try:
    rlx.train(agent="patient", steps=10_000, **shared, **{"agent.patience": 1.5})
except rlx.ConfigError as error:
    print(error)

# %% It can be attacked without a line of code.
study = rlx.attack(patient, eps=[0, 0.1], scale="std", episodes=20)
print([round(row["iqm"]) for row in study.metrics()])
