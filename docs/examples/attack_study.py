"""How far can small perturbations of what a policy sees lower its return?"""

# %% Something to attack.
import rlx

run = rlx.train(agent="dqn", env="cartpole", seeds=3, steps=20_000, eval_every=5_000)

# %% Three radii. The speeds of CartPole have no bounds, so eps counts standard deviations of what
# the policy visits: scale="std".
study = rlx.attack(run, eps="0:0.2:0.1", scale="std", episodes=50)

# %% The table: a row for each attacked head and radius.
for row in study.metrics():
    interval = f"[{row['ci95_low']:.0f}, {row['ci95_high']:.0f}]"
    flipped = f"{row['flip_rate']:.0%} of the decisions flipped"
    print(f"eps {row['eps']:g}: return {row['iqm']:.0f} {interval}, {flipped}")

# %% The radius at which half of the score is lost; ">0.2" where none of these does it.
print("critical eps", study.summary["critical_eps"])

# %% Return against the radius, with intervals over seeds.
study.figure().savefig("robustness.png")

# %% Random noise of the same size, for comparison.
noise = rlx.attack(run, attack="noise", eps="0:0.2:0.1", scale="std", episodes=50)
for fgsm_row, noise_row in zip(study.metrics(), noise.metrics(), strict=True):
    print(f"eps {fgsm_row['eps']:g}: fgsm {fgsm_row['iqm']:.0f}, noise {noise_row['iqm']:.0f}")
