"""The one door: what comes back, that a refit compiles nothing, that chains and pieces do not change the draws."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen.program.density import Density
from probgen.run.compiled import compile_count

SHORT = {"draws": 200, "warmup": 200, "chains": 2}


def test_the_tree_is_labelled(eight_schools):
    tree = pg.infer(eight_schools, pg.NUTS(), **SHORT)
    theta = tree["posterior/theta"]
    assert theta.dims == ("chain", "draw", "school")
    assert theta.school.values.tolist() == list("ABCDEFGH")
    assert theta.sizes == {"chain": 2, "draw": 200, "school": 8}
    assert tree["observed_data/y"].dims == ("school",)
    assert set(tree["sample_stats"].data_vars) >= {
        "lp",
        "energy",
        "diverging",
        "acceptance_rate",
        "n_steps",
        "tree_depth",
        "step_size",
    }
    assert tree.attrs["method"] == "nuts"
    assert tree.attrs["ended"] == "completed"


def test_a_second_fit_compiles_nothing(eight_schools):
    first = pg.infer(eight_schools, pg.NUTS(), **SHORT)
    before = compile_count()
    other = eight_schools.with_data(y=np.asarray(eight_schools.leaves["y"]) + 10)
    second = pg.infer(other, pg.NUTS(), seed=1, **SHORT)
    assert compile_count() == before
    assert second["posterior/mu"].mean() > first["posterior/mu"].mean() + 1


def test_same_seed_same_draws_however_the_run_is_cut(eight_schools, monkeypatch):
    whole = pg.infer(eight_schools, pg.NUTS(), seed=3, progress=False, **SHORT)
    cut = pg.infer(eight_schools, pg.NUTS(), seed=3, progress=True, **SHORT)
    np.testing.assert_array_equal(whole["posterior/theta"], cut["posterior/theta"])
    key = pg.infer(eight_schools, pg.NUTS(), seed=jax.random.key(3), **SHORT)
    np.testing.assert_array_equal(whole["posterior/theta"], key["posterior/theta"])


def test_thinning_keeps_every_second_draw(eight_schools):
    dense = pg.infer(eight_schools, pg.NUTS(), draws=100, warmup=200, chains=1)
    thin = pg.infer(eight_schools, pg.NUTS(), draws=50, thin=2, warmup=200, chains=1)
    np.testing.assert_array_equal(dense["posterior/mu"].values[:, 1::2], thin["posterior/mu"].values)


def test_warmup_on_request(eight_schools):
    tree = pg.infer(eight_schools, pg.NUTS(), keep_warmup=True, **SHORT)
    assert tree["warmup_posterior/mu"].sizes["draw"] == 200
    assert tree["posterior/mu"].sizes["draw"] == 200


def test_the_draw_function_is_pure_and_maps_over_data_sets(eight_schools):
    method = pg.NUTS()

    def fit(y, key):
        density = eqx.tree_at(lambda d: d.model.leaves["y"], Density(eight_schools), y)
        return method.draw(key, density, draws=50, warmup=100, chains=2).values["tau"]

    ys = np.asarray(eight_schools.leaves["y"]) + np.array([[0.0], [50.0]])
    keys = jax.random.split(jax.random.key(0), 2)
    tau = jax.jit(jax.vmap(fit))(ys, keys)
    assert tau.shape == (2, 2, 50)
    assert tau[1].mean() > tau[0].mean() + 10  # all schools far from the prior of mu: only a large tau explains them


@pytest.mark.parametrize("name", ["draws", "warmup", "chains", "thin"])
def test_counts_are_checked(eight_schools, name):
    with pytest.raises(pg.MethodError, match=name):
        pg.infer(eight_schools, pg.NUTS(), **{name: -1})


def test_no_two_chains_are_alike(eight_schools):
    tree = pg.infer(eight_schools, pg.NUTS(), draws=20, warmup=20, chains=3)
    drawn = pg.NUTS().draw(jax.random.key(0), Density(eight_schools), draws=20, warmup=20, chains=3)
    for chains in (tree["posterior/mu"].values, np.asarray(drawn.values["mu"])):
        for one, other in itertools.combinations(chains, 2):
            assert not np.isin(one, other).any()


def test_axes_of_a_matrix_keep_their_names():
    def program():
        with numpyro.plate("group", 2, dim=-2), numpyro.plate("item", 3, dim=-1):
            z = numpyro.sample("z", dist.Normal())
            numpyro.deterministic("place", 0 * z + jnp.array([[0.0, 1, 2], [10, 11, 12]]))

    tree = pg.simulate(pg.Model(program, coords={"group": ["a", "b"], "item": ["x", "y", "z"]}), draws=2)
    place = tree["prior/place"]
    assert place.dims == ("chain", "draw", "group", "item")
    assert (place.sel(group="b", item="z") == 12).all()
    assert (place.sel(group="a", item="y") == 1).all()
