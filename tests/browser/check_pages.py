"""Reports in Chromium: on a phone and a desk, in light and dark, and on paper. Run by `make test-browser`.

A page of ours holds the report in a frame as wide as the screen, measures it there and writes what it found into its
own text, which the browser prints. Screenshots and PDFs stay in `out/browser`, to be looked at.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from posterior_cases import exact_posterior, generator, regression
from pyro_scale.diagnostics import report

import pyro_scale as ps
from pyro_scale.posterior import Posterior

OUT = Path(__file__).resolve().parents[2] / "out" / "browser"
CHROMIUM = shutil.which("chromium") or "chromium"
PHONE, DESK = 390, 1280
LEAST_TEXT, LEAST_CONTRAST = 7.0, 4.5
"""Pixels of the letters of pictures on a phone; contrast of text by WCAG 2.1, level AA."""

FRAME = """<!DOCTYPE html><body style="margin:0"><iframe id="frame" src="{page}"
style="border:0;width:{width}px;height:3000px"></iframe><pre id="found"></pre><script>
function channels(colour) {{ return colour.match(/[\\d.]+/g).slice(0, 3).map(Number); }}
function luminance(colour) {{
  const [r, g, b] = channels(colour).map(c => c / 255).map(
    c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}}
function behind(node, style) {{
  for (; node; node = node.parentElement) {{
    const colour = style(node).backgroundColor;
    if (!/, 0\\)|transparent/.test(colour)) return colour;
  }}
  return "rgb(255, 255, 255)";
}}
document.getElementById("frame").onload = event => {{
  const page = event.target.contentDocument, view = event.target.contentWindow, style = n => view.getComputedStyle(n);
  const texts = [...page.querySelectorAll("p, li, th, td, h1, h2, h4, dt, dd, figcaption, nav a, svg text")];
  const contrasts = texts.filter(n => n.textContent.trim()).map(n => {{
    const ink = n.tagName === "text" ? style(n).fill : style(n).color;
    const [a, b] = [luminance(ink), luminance(behind(n.closest("svg") || n, style))].sort((a, b) => a - b);
    return [(b + 0.05) / (a + 0.05), n.tagName + " " + n.textContent.slice(0, 30)];
  }}).sort((a, b) => a[0] - b[0]);
  const letters = [...page.querySelectorAll("svg text")].map(n => {{
    const picture = n.ownerSVGElement;
    return parseFloat(style(n).fontSize) * picture.getBoundingClientRect().width / picture.viewBox.baseVal.width;
  }});
  const outside = [...page.querySelectorAll("body *")].filter(
    n => !n.closest(".scroll") && n.getBoundingClientRect().right > {width} + 1
  ).map(n => n.tagName + "." + n.className);
  const clipped = [...page.querySelectorAll(".scroll svg text")].filter(n => {{
    const [letters, box] = [n, n.closest("svg")].map(each => each.getBoundingClientRect());
    return letters.left < box.left - 1 || letters.bottom > box.bottom + 1;
  }}).map(n => n.textContent);
  document.getElementById("found").textContent = JSON.stringify({{
    clipped: clipped,
    scroll: page.documentElement.scrollWidth, letters: Math.min(...letters), contrast: contrasts[0], outside: outside,
    pictures: page.querySelectorAll("svg").length, background: style(page.body).backgroundColor,
    height: page.documentElement.scrollHeight, requests: view.performance.getEntriesByType("resource").length,
  }});
}};
</script></body>"""


def chromium(*arguments: str) -> subprocess.CompletedProcess[str]:
    shared = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
    command = [CHROMIUM, *shared, "--enable-logging=stderr", "--virtual-time-budget=5000", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module", params=["right", "wrong", "small", "wide", "fit", "point", "ensemble"])
def page(request: pytest.FixtureRequest) -> Path:
    OUT.mkdir(parents=True, exist_ok=True)
    noise = torch.randn(4, 300, 5, generator=generator(3), dtype=torch.float64)
    about: dict[str, Any] = {"num_steps": 3000, "step_size": 0.1, "timing": {"sample": 3.0}}
    posterior, reference = None, None
    x = torch.randn(60, 3, generator=generator(1), dtype=torch.float64)
    y = x.sum(1) + 0.5 * torch.randn(60, generator=generator(2), dtype=torch.float64)
    if request.param in ("fit", "point"):
        method, size = ("vi_dense", {"warmup_steps": 300}) if request.param == "fit" else ("map", {})
        posterior = ps.infer(regression, {"x": x, "y": y}, method, seed=0, progress=False, **size)
        reference = exact_posterior(x, y, num_samples=300)
    elif request.param == "ensemble":
        with torch.random.fork_rng():
            module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
        model = ps.bayesian(module, prior=dist.Normal(0.0, 1.0), likelihood=lambda z: dist.Categorical(logits=z))
        data = {"x": x, "y": x.argmax(1)}
        posterior = ps.infer(model, data, "ensemble", num_chains=12, warmup_steps=100, seed=0, progress=False)
    elif request.param == "right":
        posterior, reference = (exact_posterior(x, y, num_samples=300, seed=seed) for seed in (0, 1))
        posterior.sample_stats["kinetic_temperature"] = noise[..., :1].square()
    elif request.param == "wrong":
        drifting = noise.cumsum(1) / 10
        posterior = Posterior({"w": drifting}, sample_stats={"lp": -drifting.square().sum(-1)}, settings={}, **about)
    elif request.param == "small":
        posterior = Posterior({"w": noise[:1, :1]}, sample_stats={}, settings={"method": "MAP"}, **about)
    else:
        names = {
            "a_site_with_" + "a_long_name_" * 5: noise,
            "scope/w": 1e-7 * noise[..., :2],
            "<b>": 1e9 + noise[..., 0],
        }
        settings = {
            "method": "SGHMC",
            "kernel": "SGHMC(" + "x" * 300 + ")",
            "tuning": {"modes": 1, "scales": [0.1] * 50},
        }
        posterior = Posterior(names, sample_stats={}, settings=settings, **about)
    return report(posterior, OUT / f"{request.param}.html", reference=reference)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_page(page: Path, width: int, scheme: str) -> None:
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    frame = OUT / f"{page.stem}-{width}.frame.html"
    frame.write_text(FRAME.format(page=page.name, width=width), encoding="utf-8")
    done = chromium(*dark, "--dump-dom", frame.as_uri())
    found = json.loads(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1])  # type: ignore[index]
    assert "CONSOLE" not in done.stderr, done.stderr
    assert found["scroll"] <= width and found["outside"] == []
    assert found["requests"] == 0
    least = {"small": 0, "fit": 7, "point": 5, "ensemble": 4}.get(page.stem, 6)
    assert found["pictures"] >= least and (found["pictures"] == 0 or found["letters"] >= LEAST_TEXT)
    assert found["clipped"] == []
    assert found["contrast"][0] >= LEAST_CONTRAST, found["contrast"]
    assert (found["background"] == "rgb(255, 255, 255)") == (scheme == "light")
    size = f"--window-size={max(width, 520)},{min(int(found['height']), 9000)}"
    picture = OUT / f"{page.stem}-{width}-{scheme}.png"
    frame.write_text(frame.read_text(encoding="utf-8").replace("3000px", "9000px"), encoding="utf-8")
    chromium(*dark, size, f"--screenshot={picture}", frame.as_uri())
    assert picture.stat().st_size > 10_000


def test_paper(page: Path) -> None:
    paper = page.with_suffix(".pdf")
    chromium("--no-pdf-header-footer", f"--print-to-pdf={paper}", page.as_uri())
    assert paper.read_bytes().startswith(b"%PDF")
