"""Nested sampling: the weights of its points on ideal runs, and evidences against closed forms."""

import importlib
import warnings

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen.infer.nested_sampling import NestedSampling, weigh
from probgen.testing import assert_mean, oracles

ORACLES = {oracle.name: oracle for oracle in oracles()}


def ideal(rng, live=50, delete=5, steps=100, width=0.1):
    """Birth and death log likelihoods of exact nested sampling; the likelihood at volume x is ``exp(-x / width)``."""
    x, birth = rng.random(live), np.full(live, np.nan)
    dead = []
    for _ in range(steps):
        worst = np.argsort(-x)[:delete]
        dead.append(np.stack([birth[worst], -x[worst] / width], 1))
        contour = x[worst].min()
        x[worst], birth[worst] = contour * rng.random(delete), -contour / width
    dead.append(np.stack([birth, -x / width], 1))
    return np.concatenate(dead).T


def test_the_weights_of_ideal_points_integrate():
    """The evidence of exact runs, its error as reported, and a posterior mean of the volume."""
    width, rng = 0.1, np.random.default_rng(0)
    exact = np.log(width * (1 - np.exp(-1 / width)))
    found = []
    for _ in range(600):
        birth, death = ideal(rng, width=width)
        log_w, log_z = weigh(rng, birth, death)
        assert np.logaddexp.reduce(log_w) == pytest.approx(0)
        found.append((log_z.mean(), log_z.std(ddof=1), np.exp(log_w) @ (-width * death)))
    log_z, se, mean = np.array(found).T
    # The sum of shells takes the likelihood at their inner edges: too high by about half a live point.
    assert_mean(log_z, exact, detects=0.09, tolerance=0.02)
    assert 0.8 < se.mean() / log_z.std(ddof=1) < 1.25
    assert_mean(mean, width, detects=0.09 * width, tolerance=0.02 * width)


@pytest.fixture(scope="module")
def tree():
    return pg.infer(ORACLES["normal_gamma"].model, NestedSampling(particles=200), draws=400, chains=8, seed=0)


def test_the_evidence_is_that_of_the_closed_form(tree):
    exact = ORACLES["normal_gamma"].log_evidence
    se = tree.attrs["log_evidence_se"]
    assert se < 0.05
    assert abs(tree.attrs["log_evidence"] - exact) < 4 * se
    runs = tree["nested/log_evidence_run"].values
    assert 0.4 < tree["nested/log_evidence_se_run"].values.mean() / runs.std(ddof=1) < 2.5


def test_draws_are_from_the_posterior(tree):
    ORACLES["normal_gamma"].check(tree, detects=0.4)
    assert tree.attrs["ended"] == "completed"
    assert tree.attrs["importance_ess"] > 300
    assert not pg.check(tree).of_kind("rhat")


def test_a_run_that_is_too_short_says_so():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        short = pg.infer(ORACLES["normal_mean"].model, NestedSampling(particles=50, most_steps=3), draws=10, chains=2)
    assert short.attrs["ended"] == "not_converged"


def test_interrupted_it_goes_on_where_it_was(tmp_path, monkeypatch):
    model, counts = ORACLES["normal_mean"].model, {"draws": 20, "chains": 2, "seed": 0, "progress": False}
    method = NestedSampling(particles=40)
    plain = pg.infer(model, method, **counts)
    digging = importlib.import_module("probgen.infer.nested_sampling")._Digging
    advance, calls = digging.advance, []

    def counted(self, state, first, last):
        calls.append(first)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return advance(self, state, first, last)

    monkeypatch.setattr(digging, "advance", counted)
    with pytest.raises(KeyboardInterrupt):
        pg.infer(model, method, store=tmp_path / "run.zarr", **counts)
    resumed = pg.infer(model, method, store=tmp_path / "run.zarr", **counts)
    assert calls[:4] == [0, 20, 40, 40]  # what was done was not done again
    assert resumed.attrs["log_evidence"] == plain.attrs["log_evidence"]
    for name, variable in plain["posterior"].data_vars.items():
        np.testing.assert_array_equal(resumed["posterior"][name], variable)


def partial(y):
    b = numpyro.sample("b", dist.Normal(0, 1))
    numpyro.sample("y", dist.Uniform(b, b + 2), obs=y)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (NestedSampling(particles=5), "particles must be an int of at least 20"),
        (NestedSampling(moves=0), "moves must be an int of at least 1"),
        (NestedSampling(tolerance=2.0), "tolerance must lie between 0 and 1"),
        (NestedSampling(), r"likelihood is zero or not a number at .*pg.SMC"),
    ],
)
def test_what_cannot_be_done_is_refused(method, message):
    with pytest.raises(pg.MethodError, match=message):
        pg.infer(pg.Model(partial, {"y": 0.3}), method, draws=10, chains=2)
