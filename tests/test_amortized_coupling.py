"""Couplings and solvers of amortized flow matching; the page models/amortized_coupling has what they do to posteriors."""

import dataclasses

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen.base.errors import MethodError, ProbgenWarning

GENERATIVE = pg.generative
SHORT = GENERATIVE.Training(steps=2, batch=16, block=2)


def program(y=None):
    m = numpyro.sample("m", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 3):
        numpyro.sample("y", dist.Normal(m, 1.0), obs=y)


def amortized(method, **options):
    return pg.amortize(pg.Model(program), ["y"], method, 64, progress=False, **options)


def flow(coupling, **options):
    small = {"width": 8, "depth": 1, "encoder_width": 8, "encoder_depth": 1, "training": SHORT}
    return pg.FlowMatching(coupling=coupling, **(small | options))


@pytest.fixture(scope="module")
def conditional():
    # The condition is an embedding that is learned with the flow, and rows may be missing: nothing is differentiated
    # through the assignment.
    return amortized(flow(GENERATIVE.ConditionalOT()), missing=0.3, fewest={"row": 1})


def test_conditional_transport_reads_sets(conditional):
    drawn = pg.infer(pg.Model(program, data={"y": np.zeros(3)}), conditional, draws=3, chains=1, seed=0, progress=False)
    assert np.isfinite(drawn.posterior["m"]).all()
    assert np.isfinite(conditional.law.history["loss"]).all()


@pytest.mark.parametrize("coupling", [GENERATIVE.OptimalTransport(), GENERATIVE.EntropicOT()])
def test_couplings_that_forget_the_observation_are_warned_of(coupling):
    with pytest.warns(ProbgenWarning, match=r"biased towards the prior.*ConditionalOT"):
        flow(coupling).check()


@pytest.mark.parametrize("coupling", [GENERATIVE.Independent(), GENERATIVE.ConditionalOT(0.0)])
def test_other_couplings_are_not(coupling):
    flow(coupling).check()


@pytest.mark.parametrize("coupling", ["ot", None, GENERATIVE.GivenPairs()])
def test_what_is_no_coupling_is_refused(coupling):
    with pytest.raises(MethodError, match="does not pair simulations with noise"):
        amortized(flow(coupling))


def test_another_solver_follows_the_same_flow(conditional):
    model = pg.Model(program, data={"y": np.array([0.3, -1.0, 2.0])})

    def draws(method):
        return pg.infer(model, method, draws=5, chains=1, seed=0, progress=False).posterior["m"].values

    fine, coarse, same = (conditional.using(GENERATIVE.HeunSteps(n)) for n in (200, 2, 20))
    np.testing.assert_array_equal(draws(same), draws(conditional))
    # Errors of Heun's rule are of second order: at 20 steps a hundredth of those at 2, and much less than at 2 in any case.
    error, rough = (np.abs(draws(method) - draws(fine)).max() for method in (conditional, coarse))
    assert 0 < error < rough / 10
    with pytest.raises(MethodError, match="solver must be one"):
        conditional.using(20)


def test_only_flows_have_solvers(conditional):
    law = conditional.law
    family = dataclasses.replace(law.family, family=GENERATIVE.Diffusion())
    other = type(conditional)(law=family.distribution(law.net, law.spec))
    with pytest.raises(MethodError, match="follow no solver"):
        other.using(GENERATIVE.HeunSteps(4))


def test_what_was_trained_is_shown(conditional, tmp_path):
    assert repr(conditional).startswith("AmortizedPosterior(estimator=FlowMatching, ")
    conditional.save(tmp_path / "it")
    assert repr(pg.amortized.load(tmp_path / "it")) == repr(conditional)
