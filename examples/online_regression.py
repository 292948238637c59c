"""Learning from data that come in parts, without the earlier ones: each posterior is the prior of the next.

    python examples/online_regression.py [--num-samples 500] [--out out]

A curve is seen from left to right in five parts, by a network whose hidden layer is held: its outputs are linear in the
last layer, so that the Kalman filter is exact. Prints errors on what was seen until each part, with the prior passed
on and without; leaves a netCDF and a picture. Takes a few seconds.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch
from torch import nn

import pyro_scale as ps

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--num-samples", type=int, default=500, help="draws of each posterior")
parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the results")
args = parser.parse_args()
args.out.mkdir(parents=True, exist_ok=True)

PARTS, NOISE, HIDDEN = 5, 0.2, 30
torch.set_default_dtype(torch.float64)
generator = torch.Generator().manual_seed(0)


def curve(x):
    return torch.sin(2 * x) + 0.3 * x


x = (6 * torch.rand(300, generator=generator) - 3).sort().values
data = {"x": x[:, None], "y": curve(x) + NOISE * torch.randn(300, generator=generator)}
grid = torch.linspace(-3.3, 3.3, 200)[:, None]

# 1. The model: a layer of bumps, held, and a layer that is learned.
net = nn.Sequential(nn.Linear(1, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))
with torch.no_grad():
    slopes = 2 + torch.rand(HIDDEN, generator=generator)
    net[0].weight.copy_(slopes[:, None])
    net[0].bias.copy_(-slopes * torch.linspace(-3.3, 3.3, HIDDEN))
model = ps.bayesian(
    net, prior=dist.Normal(0.0, 1.0), sites="2.*", likelihood=lambda out: dist.Normal(out.squeeze(-1), NOISE)
)

# 2. Part after part. `prior=` is all that is kept of those before.
parts = [{name: value[rows] for name, value in data.items()} for rows in torch.arange(300).chunk(PARTS)]
options = {"method": "ekf_dense", "num_samples": args.num_samples, "seed": 0, "progress": False}
learned, forgot, posterior = [], [], None
for part in parts:
    posterior = ps.infer(model, part, prior=posterior, **options)
    learned.append(posterior)
    forgot.append(ps.infer(model, part, **options))
at_once = ps.infer(model, data, **options)


# 3. What is known of the whole curve.
def error(posterior, number):
    """Of the mean, where the curve was seen until a part."""
    seen = x[: 60 * number]
    mean = posterior.predict({"x": seen[:, None]}, linearized=True).mean["obs"]
    return float((mean - curve(seen)).square().mean().sqrt())


print(f"Error on the curve as far as it was seen (the noise is {NOISE})")
for number, (one, other) in enumerate(zip(learned, forgot, strict=True), start=1):
    print(f"  part {number}: prior passed on {error(one, number):.3f}, not passed on {error(other, number):.3f}")
print(f"  all at once: {error(at_once, PARTS):.3f}")
ours, theirs = (found.approximation for found in (learned[-1], at_once))
away = max(float((ours.mean[name] - theirs.mean[name]).abs().max()) for name in ours.mean)
print(f"Weights after the last part and all at once differ by {away:.1e}")

figure, axes = plt.subplots(2, PARTS, figsize=(13, 5), sharex=True, sharey=True, layout="constrained")
rows = ((axes[0], learned, "prior passed on"), (axes[1], forgot, "each part by itself"))
for line, posteriors, label in rows:
    line[0].set_ylabel(label)
    for number, (axis, found, part) in enumerate(zip(line, posteriors, parts, strict=True), start=1):
        prediction = found.predict({"x": grid}, linearized=True)
        mean, sd = prediction.mean["obs"], prediction.epistemic["obs"].sqrt()
        seen = x[: 60 * number]
        axis.plot(seen, data["y"][: len(seen)], ".", color="0.8", markersize=3)
        axis.plot(part["x"].squeeze(1), part["y"], ".", color="tab:orange", markersize=4, label="this part")
        axis.plot(grid, curve(grid), color="0.3", linestyle=":", linewidth=1, label="truth")
        axis.plot(grid, mean, color="tab:blue", label="mean")
        axis.fill_between(grid.squeeze(1), mean - 2 * sd, mean + 2 * sd, color="tab:blue", alpha=0.2, label="2 sd")
        axis.set_ylim(-3.5, 3.5)
for number, axis in enumerate(axes[0], start=1):
    axis.set_title(f"after part {number}")
axes[0, 0].legend(fontsize=7, loc="upper right")
figure.suptitle("The same rows, seen once: with prior=posterior nothing is forgotten")
posterior.save(args.out / "online_regression.nc")
figure.savefig(args.out / "online_regression.png", dpi=80)
print(f"\nLeft in {args.out}/: online_regression.nc, online_regression.png")
