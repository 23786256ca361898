"""Flows: how near the density comes on two standard toys, and what a step of training costs beside flowjax.

    python benchmarks/flows.py [--quick]

The gap is the test negative log-likelihood minus the entropy, in nats, of a rational-quadratic coupling flow after at most a
minute of training on two cores, compilation included; beside it the same difference of log densities averaged over the
test set, log p - log q, which has less noise. The step of training (loss, gradient, AdamW) is timed for the same flow in
both libraries: layers, width, depth, bins, batch; both in one compiled scan, so that nothing but the flows differs.
"""

import argparse
import json
import math
import platform
import statistics
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from probgen import generative
from probgen.generative import Flow, FromFlowjax, Now, Spec, Spline, Training
from probgen.nets import trainable

ROOT = Path(__file__).resolve().parent.parent


def eight_gaussians(rng, count):
    """Eight normals on a circle, and their log density; the version of FFJORD."""
    angle = np.arange(8) * np.pi / 4
    centres = 4 * np.stack([np.cos(angle), np.sin(angle)], 1)
    x = (centres[rng.integers(0, 8, count)] + 0.5 * rng.normal(size=(count, 2))) / 1.414
    scale = 0.5 / 1.414
    squares = ((x[:, None] - centres / 1.414) ** 2).sum(-1) / scale**2
    log_p = np.logaddexp.reduce(-squares / 2, 1) - math.log(8 * 2 * math.pi * scale**2)
    return x, log_p


def checkerboard(rng, count):
    """Uniform on half of the squares of a board of 8 by 4, and its log density, -log 32."""
    x = rng.random(count) * 4 - 2
    y = rng.random(count) - rng.integers(0, 2, count) * 2 + np.floor(x) % 2
    return 2 * np.stack([x, y], 1), np.full(count, -math.log(32))


TOYS = {
    "8gaussians": (eight_gaussians, 2.8327, 0.02, Flow(), 4500),
    "checkerboard": (checkerboard, math.log(32), 0.08, Flow(scalar=Spline(bins=16, bound=3.0)), 4500),
}


def gap(name, steps, data, test):
    """Fit, and compare with the truth."""
    draw, entropy, wanted, family, most = TOYS[name]
    rng = np.random.default_rng(0)
    (x, _), (held, log_p) = draw(rng, data), draw(rng, test)
    training = Training(steps=steps or most, batch=512, learning_rate=5e-3, ema=0.998, validation=0.05, block=500)
    start = time.perf_counter()
    model = generative.fit(family, x, training=training, seed=0, progress=False)
    jax.block_until_ready(model.net)
    seconds = time.perf_counter() - start
    log_q = np.asarray(jax.jit(lambda model, x: model.log_prob(x))(model, held.astype(np.float32)), float)
    nll, excess = -log_q.mean() - entropy, (log_p - log_q).mean()
    print(
        f"{name}: gap {nll:.4f} nats (log p - log q: {excess:.4f} +- {(log_p - log_q).std() / math.sqrt(test):.4f}), "
        f"wanted <= {wanted}, in {seconds:.1f} s"
    )
    return {"gap": float(nll), "excess": float(excess), "seconds": seconds, "wanted": wanted, "steps": training.steps}


def step_seconds(families, x, batch, steps, repeats):
    """Median seconds of a step of training of each family, in turn."""
    runs = {}
    for name, family in families.items():
        net = family.build(jax.random.key(0), Spec((x.shape[1],)))
        weights, fixed = eqx.partition(net, trainable(net))
        optimiser = Training(steps=steps, batch=batch).optimiser()

        def run(weights, memory, x, *, family=family, fixed=fixed, optimiser=optimiser):
            def one(state, rows):
                weights, memory = state

                def loss(weights):
                    now = Now(jnp.zeros(()), None)
                    return family.loss(jax.random.key(0), eqx.combine(weights, fixed), x[rows], None, now)

                value, gradient = jax.value_and_grad(loss)(weights)
                updates, memory = optimiser.update(gradient, memory, weights)
                return (eqx.apply_updates(weights, updates), memory), value

            rows = jnp.arange(steps * batch).reshape(steps, batch) % x.shape[0]
            return jax.lax.scan(one, (weights, memory), rows)

        runs[name] = (jax.jit(run), (weights, optimiser.init(weights), jnp.asarray(x, jnp.float32)))
    times = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, (run, arguments) in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            times[name].append((time.perf_counter() - start) / steps)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def beside_flowjax(dim, steps, repeats, batch=512, layers=8, width=64, depth=2, bins=8):
    """The same flow in both libraries."""
    from flowjax.bijections import RationalQuadraticSpline
    from flowjax.distributions import StandardNormal
    from flowjax.flows import coupling_flow

    flow = coupling_flow(
        jax.random.key(0),
        base_dist=StandardNormal((dim,)),
        transformer=RationalQuadraticSpline(knots=bins, interval=4),
        flow_layers=layers,
        nn_width=width,
        nn_depth=depth,
        nn_activation=jax.nn.silu,  # as ours; the default there is cheaper and smooth nowhere
    )
    x = np.random.default_rng(0).normal(size=(8192, dim))
    ours = Flow(scalar=Spline(bins=bins), count=layers, width=width, depth=depth)
    found = step_seconds({"probgen": ours, "flowjax": FromFlowjax(flow)}, x, batch, steps, repeats)
    ratio = found["flowjax"] / found["probgen"]
    print(
        f"a step in {dim} dimensions: probgen {1e3 * found['probgen']:.2f} ms, flowjax {1e3 * found['flowjax']:.2f} ms; "
        f"flowjax takes {ratio:.2f} times as long"
    )
    return {**found, "ratio": ratio, "batch": batch, "layers": layers, "width": width, "depth": depth, "bins": bins}


def main(quick=False):
    data, test, steps = (5000, 5000, 100) if quick else (100_000, 100_000, None)
    found = {name: gap(name, steps, data, test) for name in TOYS}
    for dim in (2, 8):
        found[f"step, {dim} dimensions"] = beside_flowjax(dim, 5 if quick else 200, 2 if quick else 5)
    found["machine"] = (
        f"{platform.processor() or platform.machine()}, {jax.device_count()} {jax.default_backend()} device"
    )
    if not quick:
        out = ROOT / "benchmarks" / "results" / "flows.json"
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run: small sizes, no file")
    main(parser.parse_args().quick)
