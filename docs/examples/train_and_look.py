"""Train a DQN on CartPole, look at its learning, and watch its policy play in Gymnasium."""

# %% Two seeds are trained as one batch. The keywords are the command line's keys.
import rlx

run = rlx.train(agent="dqn", env="cartpole", seeds=2, steps=20_000, eval_every=5_000)
print(run.path)

# %% The result: the return of each seed, their interquartile mean, and its interval.
print(run.summary["return"])

# %% The metrics: a dictionary of each evaluation of each seed.
for row in run.metrics():
    print(row["seed"], row["step"], row["return/mean"])

# %% The learning curves, as a figure of Matplotlib.
run.figure().savefig("curves.png")

# %% The env as Gymnasium knows it, and the policy of the run's first seed.
env = run.make_env()
for episode in range(3):
    obs, _ = env.reset(seed=episode)
    run.policy.reset()
    total = 0.0
    ended = False
    while not ended:
        action = run.policy.act(obs)
        obs, reward, terminated, truncated, _ = env.step(action)
        total += reward
        ended = terminated or truncated
    print(f"episode {episode}: {total:.0f}")
