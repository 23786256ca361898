"""``pg.Model``: interventions, conditions, new data, labels, and the table of sites."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.stats as jss
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.contrib.module import random_eqx_module
from programs import ROWS, Y, branches, network, random_walk, regression

import probgen as pg
from probgen.program.density import Density
from probgen.program.sites import Kind

# -- interventions and conditions --------------------------------------------------------------------------------------


def chain(x=None):
    a = numpyro.sample("a", dist.Normal())
    b = numpyro.sample("b", dist.Normal(2 * a, 1.0))
    c = numpyro.deterministic("c", a + b)
    numpyro.sample("d", dist.Normal(c, 1.0), obs=1.5)


def test_do_cuts_the_mechanism_and_reaches_downstream():
    model = pg.Model(chain).do(b=3.0)
    assert model.sites["b"].kind is Kind.deterministic
    density = Density(model)
    assert [block.name for block in density.blocks] == ["a"]
    np.testing.assert_allclose(density.constrain(jnp.array([0.5]))["c"], 3.5)
    expected = jss.norm.logpdf(0.5) + jss.norm.logpdf(1.5, 3.5)
    np.testing.assert_allclose(density.log_density(jnp.array([0.5])), expected, rtol=1e-12)


def test_do_reaches_deterministic_sites():
    density = Density(pg.Model(chain).do(c=-1.0))
    expected = jss.norm.logpdf(0.5) + jss.norm.logpdf(0.2, 1.0) + jss.norm.logpdf(1.5, -1.0)
    np.testing.assert_allclose(density.log_density(jnp.array([0.5, 0.2])), expected, rtol=1e-12)


def test_do_with_a_function_keeps_the_natural_value():
    model = pg.Model(chain).do(b=lambda natural: natural + 1)
    density = Density(model)
    assert model.sites["b_natural"].kind is Kind.continuous
    values = density.constrain(jnp.array([0.5, 0.2]))
    np.testing.assert_allclose([values["b_natural"], values["b"], values["c"]], [0.2, 1.2, 1.7])
    expected = jss.norm.logpdf(0.5) + jss.norm.logpdf(0.2, 1.0) + jss.norm.logpdf(1.5, 1.7)
    np.testing.assert_allclose(density.log_density(jnp.array([0.5, 0.2])), expected, rtol=1e-12)
    known = pg.Model(chain).condition(b=0.2).do(b=lambda natural: natural + 1)
    assert known.sites["b_natural"].kind is Kind.observed
    np.testing.assert_allclose(Density(known).log_density(jnp.array([0.5])), expected, rtol=1e-12)


def test_do_reaches_sites_inside_scan():
    model = pg.Model(random_walk, {"y": Y})
    path = jnp.arange(6.0)
    for new, expected in ((path, path), (2.0, jnp.full(6, 2.0))):
        density = Density(model.do(x=new))
        assert density.dim == 1
        np.testing.assert_allclose(density.constrain(jnp.zeros(1))["double"], 2 * expected)
        np.testing.assert_allclose(density.log_likelihood(jnp.zeros(1)), jss.norm.logpdf(Y, expected).sum())
    shifted = Density(model.do(x=lambda natural: natural + 1))
    u = jnp.asarray(np.random.default_rng(4).normal(size=shifted.dim))
    values = shifted.constrain(u)
    np.testing.assert_allclose(values["x"], values["x_natural"] + 1)
    before = jnp.concatenate([jnp.zeros(1), values["x"][:-1]])
    prior = dist.HalfNormal().log_prob(values["s"]) + jnp.log(values["s"])
    prior += jss.norm.logpdf(values["x_natural"], before, values["s"]).sum()
    np.testing.assert_allclose(shifted.log_prior(u), prior, rtol=1e-12)


def test_do_reaches_sites_inside_cond():
    density = Density(pg.Model(branches).do(w=1.0))
    assert [block.name for block in density.blocks] == ["z"]
    np.testing.assert_allclose(density.log_likelihood(jnp.zeros(1)), jss.norm.logpdf(0.3, 1.0), rtol=1e-12)


def test_condition_observes():
    model = pg.Model(chain).condition(a=0.5)
    assert model.sites["a"].kind is Kind.observed
    density = Density(model)
    expected = jss.norm.logpdf(0.5) + jss.norm.logpdf(0.2, 1.0) + jss.norm.logpdf(1.5, 0.7)
    np.testing.assert_allclose(density.log_density(jnp.array([0.2])), expected, rtol=1e-12)
    scanned = Density(pg.Model(random_walk, {"y": Y}).condition(x=jnp.zeros(6)))
    expected = 6 * jss.norm.logpdf(0.0) + jss.norm.logpdf(Y).sum()
    np.testing.assert_allclose(scanned.log_likelihood(jnp.zeros(1)), expected, rtol=1e-12)


def test_condition_reaches_sites_inside_cond():
    density = Density(pg.Model(branches).condition(w=1.0))
    assert [block.name for block in density.blocks] == ["z"]
    for z, w in ((1.0, jss.norm.logpdf(1.0, 2.0, 1.0)), (-1.0, jss.norm.logpdf(1.0, -2.0, 2.0))):
        expected = w + jss.norm.logpdf(0.3, 1.0)
        np.testing.assert_allclose(density.log_likelihood(jnp.array([z])), expected, rtol=1e-12)


def test_with_data_replaces_arguments():
    model = pg.Model(regression, {"x": ROWS, "y": Y[:5]}, coords={"row": list("abcde")})
    without = model.with_data(y=None)
    assert without.sites["y"].kind is Kind.continuous
    doubled = model.with_data(y=2 * Y[:5])
    assert jax.tree.structure(doubled) == jax.tree.structure(model)


# -- labels and the table ----------------------------------------------------------------------------------------------


def test_event_dims_plates_and_time_name_axes():
    def program(y):
        with numpyro.plate("group", 2, dim=-1):
            numpyro.sample("b", dist.Normal().expand([2, 3]).to_event(1), infer={"event_dims": ["feature"]})

        def step(x, y_now):
            with numpyro.plate("pair", 2):
                x = numpyro.sample("x", dist.Normal(x, 1.0))
            numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=y_now)
            return x, None

        scan(step, jnp.zeros(2), y)

    model = pg.Model(program, {"y": Y}, coords={"feature": ["u", "v", "w"], "time": range(10, 16)})
    assert {site.name: site.dims for site in model.sites} == {
        "b": ("group", "feature"),
        "x": ("time", "pair"),
        "y": ("time",),
    }


def test_the_table_reads_well():
    model = pg.Model(random_walk, {"y": Y})
    assert repr(model.sites).splitlines() == [
        "site    kind                distribution  support      shape  dims",
        "s       latent, continuous  HalfNormal    positive(0)  ()",
        "x       latent, continuous  Normal        real         (6,)   time",
        "y       observed            Normal        real         (6,)   time",
        "double  deterministic                                  (6,)   time",
    ]
    assert repr(model).startswith("Model(random_walk)\n")
    assert model.sites["x"].scanned


def test_networks_leave_no_parameters_behind():
    model = pg.Model(network, {"x": ROWS[:, :2], "y": Y[:5]})
    assert model.of_kind(Kind.param) == ()

    def partly(x):
        net = random_eqx_module(
            "net", eqx.nn.Linear(2, "scalar", key=jax.random.key(0)), prior={"weight": dist.Normal()}
        )
        numpyro.sample("y", dist.Normal(jax.vmap(net)(x), 1.0).to_event(1), obs=Y[:5])

    with pytest.raises(pg.MethodError, match=r"net\$params"):
        pg.infer(pg.Model(partly, {"x": ROWS[:, :2]}), pg.NUTS())


def test_a_model_can_be_made_inside_jit():
    model = pg.Model(regression, {"x": ROWS, "y": Y[:5]})

    @jax.jit
    def log_density(y):
        return Density(model.with_data(y=y)).log_density(jnp.zeros(4))

    np.testing.assert_allclose(log_density(Y[:5]), Density(model).log_density(jnp.zeros(4)), rtol=1e-12)


def test_labels_are_no_part_of_what_is_compiled():
    plain = Density(pg.Model(regression, {"x": ROWS, "y": Y[:5]}))
    named = Density(pg.Model(regression, {"x": ROWS, "y": Y[:5]}, coords={"row": list("abcde")}))
    assert jax.tree.structure(plain) == jax.tree.structure(named)


def test_subsampled_plates_know_their_full_size():
    def program(y):
        m = numpyro.sample("m", dist.Normal())
        with numpyro.plate("row", 6, subsample_size=2) as rows:
            numpyro.sample("y", dist.Normal(m, 1.0), obs=y[rows])

    (plate,) = pg.Model(program, {"y": Y}, coords={"row": list("abcdef")}).sites["y"].plates
    assert (plate.name, plate.size, plate.subsample) == ("row", 6, 2)


def test_axes_of_arguments_can_be_named(eight_schools):
    model = pg.Model(
        eight_schools.program, dict(eight_schools.leaves), dict(eight_schools.coords), dims={"sigma": ["school"]}
    )
    tree = pg.infer(model, pg.NUTS(), draws=50, warmup=50, chains=1)
    assert tree["constant_data/sigma"].school.values.tolist() == list("ABCDEFGH")
    with pytest.raises(pg.DataError, match=r"dims\['sigma'\] has 2 names, but 'sigma' has shape \(8,\)"):
        pg.Model(eight_schools.program, dict(eight_schools.leaves), dims={"sigma": ["a", "b"]})
