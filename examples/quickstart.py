"""Logistic regression on real data: SGHMC from minibatches, judged by NUTS on the same model.

    python examples/quickstart.py [--num-samples 1000] [--out out]

Prints the summaries, the comparison and a prediction; leaves a netCDF, a report and a picture in `--out`.
"""

import argparse
from pathlib import Path

import arviz as az
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist

import pyro_scale as ps

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--num-samples", type=int, default=1000, help="draws a chain")
parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the results")
args = parser.parse_args()
args.out.mkdir(parents=True, exist_ok=True)

# 1. An ordinary Pyro model, written for all of the data.


def model(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("obs", dist.Bernoulli(logits=x @ w), obs=y)


data = ps.models.pima().data  # 768 women, an intercept and 8 standardised measurements; y is diabetes
train = {name: value[:-3] for name, value in data.items()}
new = {"x": data["x"][-3:]}

# 2. SGHMC from minibatches of 64, and the reference.
posterior = ps.infer(model, train, batch_size=64, num_samples=args.num_samples, seed=0)
reference = ps.diagnostics.nuts(model, train, num_samples=args.num_samples, seed=1)

# 3. Did it converge, and is it right?
for name, result in {"SGHMC, minibatches of 64": posterior, "NUTS, all rows": reference}.items():
    print(f"\n{name}, {sum(result.timing.values()):.0f} s")
    print(result.health)
    print(az.summary(result.idata, round_to=3).to_string())
table = ps.diagnostics.compare(posterior, reference=reference).loc["SGHMC"]
print("\nSGHMC against NUTS, errors in posterior standard deviations")
print(table[["mean_error", "mcse", "sd_ratio", "ess_bulk", "r_hat"]].round(3).to_string())

# 4. What does it say of women who were not in the data?
prediction = posterior.predict(new)
print("\nThree women who were not in the data")
for i, p in enumerate(prediction.mean["obs"]):
    total, epistemic = prediction.total["obs"][i], prediction.epistemic["obs"][i]
    print(f"P(diabetes) = {p:.2f}; uncertainty {total:.3f} nats, of which {epistemic:.4f} more data would remove")

# 5. Keep it, and look at it.
posterior.save(args.out / "pima_sghmc.nc")
ps.diagnostics.report(posterior, args.out / "pima_report.html", reference=reference)
names = ["intercept", "pregnant", "glucose", "pressure", "triceps", "insulin", "mass", "pedigree", "age"]
marginals, axes = plt.subplots(nrows=3, ncols=3, figsize=(10, 7), layout="constrained")
for i, (name, axis) in enumerate(zip(names, axes.flat, strict=True)):
    for label, result in (("NUTS", reference), ("SGHMC", posterior)):
        axis.hist(result.draws["w"][..., i].flatten(), bins=40, density=True, histtype="step", label=label)
    axis.set(title=name, yticks=[])
axes[0, 0].legend()
marginals.suptitle("Posterior of each coefficient: SGHMC from minibatches of 64, and NUTS on all rows")
marginals.savefig(args.out / "pima_marginals.png", dpi=80)
print(f"\nLeft in {args.out}/: pima_sghmc.nc, pima_report.html (open it in a browser), pima_marginals.png")
