"""Logistic regression of diabetes among 768 women by seven methods, beside a long run of NUTS: errors, KSD and cost.

    python examples/pima_table.py [--num-samples 1000] [--chains 1000] [--out out]

The comparison of Duffield et al. (2024), Scalable Bayesian learning with posteriors, with a kernel Stein discrepancy
whose gradients are those of the log posterior of all rows, in units of the reference's standard deviations: it ranks
draws that are moved or too wide behind exact ones. Errors are those of the worst coefficient, in posterior standard
deviations. Leaves a netCDF and a picture in `--out`.
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import pyro
import pyro.distributions as dist

import pyro_scale as ps

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--num-samples", type=int, default=1000, help="draws a chain")
parser.add_argument("--chains", type=int, default=1000, help="chains of parallel SGHMC")
parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the results")
args = parser.parse_args()
args.out.mkdir(parents=True, exist_ok=True)


def model(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("obs", dist.Bernoulli(logits=x @ w), obs=y)


data = ps.models.pima().data
draws = {"num_samples": args.num_samples, "seed": 0, "progress": False}
parallel = ps.kernels.SGHMC(step_size=0.1, friction=0.5)

# 1. The reference: four long chains. 2. What is compared with it, all of it called in the same way.
reference = ps.diagnostics.nuts(model, data, num_samples=5 * args.num_samples, sampler="nutpie", seed=1)
runs = {
    "NUTS": lambda: ps.diagnostics.nuts(model, data, num_samples=args.num_samples, seed=2),
    "SGHMC, all rows": lambda: ps.infer(model, data, "sghmc", **draws),
    "SGHMC, 32 rows": lambda: ps.infer(model, data, "sghmc", batch_size=32, **draws),
    "VI, all rows": lambda: ps.infer(model, data, "vi_dense", **draws),
    "VI, 32 rows": lambda: ps.infer(model, data, "vi_dense", batch_size=32, **draws),
    "Laplace": lambda: ps.infer(model, data, "laplace_dense", **draws),
    "parallel SGHMC, 32 rows": lambda: ps.infer(
        model, data, parallel, batch_size=32, initial="prior", num_chains=args.chains, warmup_steps=1000,
        num_samples=1, seed=0, progress=False,
    ),
}  # fmt: skip

rows, posteriors = {}, []
for name, run in runs.items():
    began = time.perf_counter()
    posterior = run()
    seconds = time.perf_counter() - began
    posterior.settings["method"] = name  # the label of tables and pictures
    posteriors.append(posterior)
    worst = ps.diagnostics.compare(posterior, reference=reference).loc[(name, "all")]
    distance = ps.diagnostics.ksd(posterior, reference=reference)
    ess = args.chains if "parallel" in name else worst["ess_bulk"]  # one draw a chain: as many as there are chains
    rows[name] = {
        "mean error": worst["mean_error"],
        "sd ratio": worst["sd_ratio"],
        "KSD^2": distance.u_statistic,  # without bias: it does not depend on the number of draws, and may be negative
        "error of it": distance.standard_error,
        "ESS": ess,
        "seconds": seconds,
        "ESS/s": ess / seconds,
    }

# 3. The table and the picture. Draws of a fitted normal are independent, so that they have no ESS.
table = pd.DataFrame(rows).T
print(
    table.round(
        {"mean error": 3, "sd ratio": 3, "KSD^2": 4, "error of it": 4, "ESS": 0, "seconds": 1, "ESS/s": 0}
    ).to_string(na_rep="-")
)
posteriors[2].save(args.out / "pima_sghmc.nc")
figure = ps.diagnostics.plot_compare(*posteriors[1:], reference=reference)
figure.savefig(args.out / "pima_table.png", dpi=120)
print(f"wrote pima_sghmc.nc and pima_table.png to {args.out}")
