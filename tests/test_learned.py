"""Learned distributions: the training loop, conditions, declared abilities, saving. The family is a normal law, whose
maximum of the likelihood is known."""

import json
import os
from pathlib import Path
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest

import probgen as pg
from probgen.generative import Exactness, Family, Learned, Solved, Spec, Training, fit, load, save, training
from probgen.generative.training_data import Arrays
from probgen.run.compiled import compile_count
from probgen.run.store import Pace


class LearnedNormal(Learned):
    """Independent normals; the condition, if any, is added to the mean."""

    offers: ClassVar = {
        "sample": Exactness.exact,
        "log_prob": Exactness.exact,
        "noise_map": Exactness.exact,
        "bound": Exactness.bound,
    }

    def law(self):
        loc, log_scale = self.net
        return dist.Normal(loc if self.condition is None else loc + self.condition, jnp.exp(log_scale)).to_event(1)

    def draw(self, key):
        return self.push(jax.random.normal(key, self.event_shape))

    def density(self, x):
        return self.law().log_prob(x)

    def bound_at(self, key, x):
        return self.density(x) - jax.random.exponential(key)

    def push(self, z):
        return self.law().base_dist.loc + self.law().base_dist.scale * z


class NormalFamily(Family):
    """For the tests."""

    start: float = eqx.field(static=True, default=0.0)
    training: ClassVar = Training(steps=400, batch=64, learning_rate=0.05, validation=0.2, weight_decay=0.0, clip=10.0)

    def build(self, key, spec):
        return jnp.full(spec.shape, self.start, jnp.float32), jnp.zeros(spec.shape, jnp.float32)

    def loss(self, key, net, x, condition, now):
        return -jnp.mean(
            jax.vmap(LearnedNormal(self, Spec(x.shape[1:]), net).density)(x - (0 if condition is None else condition))
        )

    def distribution(self, net, spec):
        return LearnedNormal(self, spec, net)


RNG = np.random.default_rng(0)
X = RNG.normal(size=(1000, 2)) * [1.0, 3.0] + [2.0, -1.0]
C = RNG.normal(size=(1000, 2))


@pytest.fixture(scope="module")
def model():
    return fit(
        NormalFamily(), X, training=Training(**{**vars(NormalFamily.training), "validation": 0.0, "steps": 1000})
    )


@pytest.fixture(scope="module")
def conditional():
    return fit(NormalFamily(), X + C, C, seed=1)


def test_training_ends_at_the_maximum_of_the_likelihood(model):
    # The rate has fallen to a hundredth; what is left is the noise of batches of 64, averaged over 1,000 steps.
    loc, log_scale = model.net
    se = X.std(0) / np.sqrt(64 * 1000)
    assert np.all(np.abs(loc - X.mean(0)) < 6 * se)
    assert np.all(np.abs(np.exp(log_scale) / X.std(0) - 1) < 6 / np.sqrt(2 * 64 * 1000))


def test_the_best_weights_on_held_out_data_are_kept():
    wild = Training(steps=300, batch=64, learning_rate=0.5, block=20, ema=0.0, validation=0.2, clip=10.0)
    model = fit(NormalFamily(), X, training=wild)
    held = model.history["validation"]
    assert np.isfinite(held[19::20]).all()
    assert np.isnan(held.reshape(-1, 20)[:, :19]).all()
    source = Arrays(X, None, wild, NormalFamily())
    source.hold_out(jax.random.split(jax.random.key(0), 4)[2])
    rows = source.held[: len(source.held) // 64 * 64]
    now = -np.mean(model.log_prob(X[rows].astype(np.float32)))
    np.testing.assert_allclose(now, np.nanmin(held), rtol=1e-5)
    assert held[-1] > np.nanmin(held)


def test_training_stops_where_nothing_is_gained_any_more():
    still = Training(steps=2000, batch=64, learning_rate=1e-12, block=10, patience=3)
    stopped = fit(NormalFamily(), X, training=still)
    assert len(stopped.history["loss"]) < 200


def test_an_epoch_sees_every_datum_once():
    source = Arrays(X, None, Training(batch=100, validation=0.1), NormalFamily())
    source.hold_out(jax.random.key(0))
    rows = np.asarray(source.batches(jax.random.key(1), 0, 18))
    assert np.array_equal(np.sort(rows[:9].ravel()), np.arange(900))
    assert np.array_equal(np.sort(rows[9:].ravel()), np.arange(900))
    assert not np.array_equal(rows[:9], rows[9:])
    np.testing.assert_array_equal(np.asarray(source.batches(jax.random.key(1), 5, 12)), rows[5:12])
    assert not set(source.held) & set(source.rows)


def test_batches_from_elsewhere_and_frames_do_as_arrays_do():
    batches = [X[i : i + 100] for i in range(0, 1000, 100)]
    streamed = fit(NormalFamily(), Batches(batches), training=Training(steps=300, learning_rate=0.1, clip=10.0))
    assert np.all(np.abs(streamed.net[0] - X[100:].mean(0)) < 0.3)
    frame = fit(NormalFamily(), pd.DataFrame(X, columns=["a", "b"]))
    np.testing.assert_array_equal(frame.net[0], fit(NormalFamily(), X).net[0])
    assert frame.spec.columns == ("a", "b")


class Taught(NormalFamily):
    """With a trained part."""

    teacher: Learned | None = None


class SolvedNormal(Solved, NormalFamily):
    """By the mean and the standard deviation of all that it sees."""

    def solve(self, key, net, x, condition):
        return x.mean(0), jnp.log(x.std(0))


def test_what_is_solved_sees_all_data():
    np.testing.assert_allclose(fit(SolvedNormal(), X).net[0], X.mean(0), rtol=1e-5)
    with pytest.raises(pg.DataError, match="a SolvedNormal is fitted from all data at once"):
        fit(SolvedNormal(), Batches([X[:500], X[500:]]))


class Batches:
    """Can be run through again."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Shuffled(Batches):
    """In another order each time."""

    def __iter__(self):
        self.batches = self.batches[::-1]
        return super().__iter__()


def test_a_killed_fit_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(Pace, "SECONDS", 0.0)
    monkeypatch.setattr(Pace, "SHARE", 1e9)
    whole = fit(NormalFamily(), X)
    calls = []

    real = training.compile_all

    def dying(jobs):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return real(jobs)

    monkeypatch.setattr(training, "compile_all", dying)
    with pytest.raises(RuntimeError, match="killed"):
        fit(NormalFamily(), X, store=tmp_path / "run.zarr")
    resumed = fit(NormalFamily(), X, store=tmp_path / "run.zarr")
    np.testing.assert_array_equal(resumed.net[0], whole.net[0])
    np.testing.assert_array_equal(resumed.history["loss"], whole.history["loss"])
    assert len(calls) == 3 + 2  # two blocks were kept, two were left
    with pytest.raises(pg.StoreError, match="holds another run"):
        fit(NormalFamily(), X + 1, store=tmp_path / "run.zarr")


def test_steps_that_are_not_a_number_are_not_taken():
    class Sometimes(NormalFamily):
        def loss(self, key, net, x, condition, now):
            bad = jax.random.uniform(key) < 0.3
            return super().loss(key, net, x, condition, now) * jnp.where(bad, jnp.nan, 1.0)

    model = fit(Sometimes(), X, training=Training(steps=400, batch=64, learning_rate=0.05, validation=0.0, clip=10.0))
    skipped = np.isnan(model.history["loss"]).mean()
    assert 0.2 < skipped < 0.4
    assert np.all(np.abs(model.net[0] - X.mean(0)) < 0.3)


def test_diverged_training_says_so():
    class Never(NormalFamily):
        def loss(self, key, net, x, condition, now):
            return super().loss(key, net, x, condition, now) * jnp.nan

    with pytest.raises(
        pg.MethodError, match=r"training diverged: no loss is finite from step 0 on. Lower learning_rate"
    ):
        fit(Never(), X)


def test_held_out_losses_that_are_never_finite_are_no_judgement():
    class Extreme(NormalFamily):
        def loss(self, key, net, x, condition, now):
            return super().loss(key, net, x, condition, now) * jnp.where(jnp.any(x > 1e6), jnp.nan, 1.0)

    short = Training(steps=20, batch=64, block=10)
    source = Arrays(X, None, short, Extreme())
    source.hold_out(jax.random.split(jax.random.key(0), 4)[2])
    x = X.copy()
    x[source.held[0]] = 1e7
    with pytest.raises(pg.MethodError, match="no held-out loss is finite"):
        fit(Extreme(), x, training=short)


def test_refits_compile_nothing(model):
    fit(NormalFamily(), X, seed=4)
    before = compile_count()
    fit(NormalFamily(), X[::-1], seed=5)
    assert compile_count() == before


# -- as a distribution -----------------------------------------------------------------------------------------------


def test_shapes_of_draws_and_densities(model, conditional):
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        assert model.sample(key).shape == (2,)
        assert model.sample(key, (3, 4)).shape == (3, 4, 2)
        assert conditional.given(C[:5]).sample(key, (3,)).shape == (3, 5, 2)
    assert model.log_prob(X).shape == (1000,)
    assert conditional.given(C[:5]).log_prob(X[0]).shape == (5,)
    assert conditional.given(C[:5]).log_prob(X[:3, None]).shape == (3, 5)
    assert conditional.given(C[0]).batch_shape == ()
    assert conditional.given(C[:5]).noise_map(np.zeros((5, 2))).shape == (5, 2)
    assert model.bound(jax.random.key(0), X[:7]).shape == (7,)
    assert model.expand((4,)).sample(jax.random.key(0)).shape == (4, 2)


def test_every_point_meets_its_own_condition(conditional):
    loc, log_scale = conditional.net
    law = dist.Normal(loc + C[:5], jnp.exp(log_scale)).to_event(1)
    np.testing.assert_allclose(conditional.given(C[:5]).log_prob(X[:5]), law.log_prob(X[:5]), rtol=1e-6)
    z = RNG.normal(size=(3, 5, 2))
    np.testing.assert_allclose(conditional.given(C[:5]).noise_map(z), loc + C[:5] + jnp.exp(log_scale) * z, rtol=1e-6)


def test_draws_with_one_key_differ_and_gradients_pass_through_the_condition(conditional):
    draws = conditional.given(C[:5]).sample(jax.random.key(0), (3,))
    assert len(np.unique(draws - C[:5])) == draws.size
    slope = jax.grad(lambda c: conditional.given(c).log_prob(X[0]))(jnp.asarray(C[0]))
    loc, log_scale = conditional.net
    np.testing.assert_allclose(slope, (X[0] - loc - C[0]) / jnp.exp(log_scale) ** 2, rtol=1e-5)


def test_it_passes_through_jit_and_vmap(model, conditional):
    np.testing.assert_allclose(jax.jit(lambda m, x: m.log_prob(x))(model, X), model.log_prob(X), rtol=1e-6)
    one_by_one = jax.vmap(lambda c, x: conditional.given(c).log_prob(x))(C, X)
    np.testing.assert_allclose(one_by_one, conditional.given(C).log_prob(X), rtol=1e-6)


def test_a_stack_of_models_is_mapped_over(model, conditional):
    other = jax.tree.map(lambda a: a + 1, model.net)
    nets = jax.tree.map(lambda *a: jnp.stack(a), model.net, other)
    stack = jax.vmap(lambda net: model.family.distribution(net, model.spec))(nets)
    each = jax.vmap(lambda one: one.log_prob(X[0]))(stack)
    there = [model.log_prob(X[0]), model.family.distribution(other, model.spec).log_prob(X[0])]
    np.testing.assert_allclose(each, np.stack(there), rtol=1e-6)
    with pytest.raises(pg.MethodError, match=r"a stack of shape \(2,\) of LearnedNormals"):
        stack.log_prob(X[0])


def test_what_a_model_lacks_it_names(model, conditional):
    with pytest.raises(pg.MethodError, match=r"a NormalFamily has no score. It has: sample\(key\).*; the log density"):
        model.score(X[0], 0.5)
    with pytest.raises(pg.MethodError, match=r"fitted with conditions of shape \(2,\) and was given none"):
        conditional.sample(jax.random.key(0))
    with pytest.raises(pg.MethodError, match="was fitted without conditions"):
        model.given(C)
    for value in (0.3, X[:, :1], np.zeros(3)):
        with pytest.raises(pg.DataError, match=r"the value has shape .*, expected \(\.\.\., 2\)"):
            model.log_prob(value)
    with pytest.raises(pg.DataError, match=r"the noise has shape \(3,\)"):
        model.noise_map(np.zeros(3))
    for whole in (np.zeros(2, int), [0, 1], jnp.zeros((4, 2), jnp.int32), np.zeros(2, complex), ["a", "b"]):
        with pytest.raises(pg.DataError, match=r"the noise has the type .*, expected real numbers"):
            model.noise_map(whole)
    with pytest.raises(pg.DataError, match=r"the value has the type object, expected numbers"):
        model.log_prob(np.array([None, 1.0], object))
    np.testing.assert_allclose(model.log_prob(np.array([1, 2])), model.log_prob(np.array([1.0, 2.0])))
    with pytest.raises(pg.DataError, match=r"the condition has shape \(5, 3\), expected \(\.\.\., 2\)"):
        conditional.given(np.zeros((5, 3)))


# -- saving ----------------------------------------------------------------------------------------------------------


def test_a_saved_model_is_the_same_bit_for_bit(tmp_path, model, conditional):
    for i, one in enumerate((model, conditional)):
        save(one, tmp_path / f"m{i}")
        again = load(tmp_path / f"m{i}")
        assert again.spec == one.spec
        assert again.family == one.family
        jax.tree.map(np.testing.assert_array_equal, again.net, one.net)
    save(conditional, tmp_path / "m0")  # replaces
    assert load(tmp_path / "m0").spec.condition == (2,)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m0", "m1"]


def test_models_within_a_family_keep_their_condition_and_space(tmp_path, conditional):
    teacher = conditional.given(C[0]).in_data_space()
    save(Taught(teacher=teacher).distribution(conditional.net, Spec((2,))), tmp_path / "m")
    again = load(tmp_path / "m").family.teacher
    np.testing.assert_array_equal(again.log_prob(X), teacher.log_prob(X))
    assert not again.noise_space


def test_a_name_that_two_classes_have_is_refused(tmp_path, model):
    namesake = type("Flow", (NormalFamily,), {"__module__": "mine"})()
    with pytest.raises(pg.MethodError, match=r"a mine.Flow, and another class of that name is imported"):
        save(namesake.distribution(model.net, model.spec), tmp_path / "m")


def test_saving_removes_nothing_but_what_it_wrote(tmp_path, model):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "model.json").write_text("{}")
    (mine / "thesis.txt").write_text("of years")
    with pytest.raises(pg.StoreError, match=r"holds more than a learned distribution: thesis\.txt"):
        save(model, mine)
    assert (mine / "thesis.txt").read_text() == "of years"


@pytest.mark.parametrize("killed", [False, True])
def test_a_save_that_fails_midway_loses_nothing(tmp_path, model, conditional, monkeypatch, killed):
    save(model, tmp_path / "m")
    real = Path.rename

    def failing(self, target):
        if self.name == "new" or (killed and self.name == ".m.old"):
            raise OSError("no")
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", failing)
        with pytest.raises(pg.StoreError, match="cannot be written"):
            save(conditional, tmp_path / "m")
    assert (tmp_path / "m").exists() is not killed
    assert load(tmp_path / "m").spec == model.spec
    save(conditional, tmp_path / "m")
    assert load(tmp_path / "m").spec == conditional.spec
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_what_a_link_points_to_is_replaced(tmp_path, model, conditional):
    save(model, tmp_path / "m")
    (tmp_path / "latest").symlink_to("m")
    save(conditional, tmp_path / "latest")
    assert (tmp_path / "latest").is_symlink()
    assert load(tmp_path / "m").spec == conditional.spec


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.json")
    with pytest.raises(pg.StoreError, match="does not hold what save"):
        load(tmp_path)


def damaged(text, **changes):
    return json.dumps({**json.loads(text), **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: "{", "does not hold what save"),
        (lambda t: "[1]", "does not hold what save"),
        (lambda t: damaged(t, version=99), "version 99, and this probgen reads up to 1"),
        (lambda t: damaged(t, family={"class": "Path", "fields": {}}), "does not hold what save"),
        (lambda t: damaged(t, family={"class": "os.system", "fields": {}}), "does not hold what save"),
        (lambda t: damaged(t, spec={"class": "Spec", "fields": {"shape": [2]}}), "does not hold what save"),
        (lambda t: damaged(t, settings="x"), "does not hold what save"),
        (lambda t: t.replace('"values": 0', '"values": "a"'), "does not hold what save"),
    ],
)
def test_a_damaged_description_is_refused(tmp_path, model, change, message):
    save(model, tmp_path / "m")
    file = tmp_path / "m" / "model.json"
    file.write_text(change(file.read_text()))
    with pytest.raises(pg.StoreError, match=message):
        load(tmp_path / "m")


def test_damaged_or_foreign_arrays_are_refused(tmp_path, model, conditional):
    save(model, tmp_path / "m")
    arrays = tmp_path / "m" / "arrays"
    content = bytearray(arrays.read_bytes())
    content[-40] ^= 1
    arrays.write_bytes(bytes(content))
    with pytest.raises(pg.StoreError, match="damaged"):
        load(tmp_path / "m")
    other = fit(NormalFamily(), X[:, :1], training=Training(steps=1))
    save(other, tmp_path / "other")
    arrays.write_bytes((tmp_path / "other" / "arrays").read_bytes())
    with pytest.raises(pg.StoreError):
        load(tmp_path / "m")
    with pytest.raises(pg.StoreError, match="holds no learned distribution"):
        load(tmp_path / "nowhere")
    (tmp_path / "mine").mkdir()
    with pytest.raises(pg.StoreError, match=r"holds no learned distribution\. Choose another"):
        save(model, tmp_path / "mine")


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "expected one datum per row"),
        ((np.array([[1.0, np.nan]] * 5),), "not finite in 5 rows, first in row 0"),
        ((np.array([["a"]]),), "expected numbers"),
        ((X, C[:5]), "condition has 5 rows, but data has 1000"),
        ((iter([X]),), "iterator that can be run through once"),
        ((X[:1],), "too few"),
        ((X * 1e300,), "beyond 3e38"),
        ((Batches([]),), "has no batches"),
        ((Shuffled([X, X + 1]),), "come in another order each time"),
        ((Batches([X, X]), C), "and so must their conditions"),
        ((Batches([X, X[:, :1]]),), r"shapes \[\(1,\), None\], and the first one of \[\(2,\), None\]"),
        ((Batches([(X, C), (X, C[:5])]),), "5 conditions and 1000 data"),
    ],
)
def test_bad_data_are_refused(arguments, message):
    with pytest.raises(pg.DataError, match=message):
        fit(NormalFamily(), *arguments, training=Training(validation=0.8))


def test_bad_settings_are_refused():
    with pytest.raises(pg.MethodError, match=r"family must be a generative family, got NormalFamily"):
        fit(NormalFamily, X)
    with pytest.raises(pg.MethodError, match=r"values=3 is the number of values of discrete data, and NormalFamily"):
        fit(NormalFamily(), X, values=3)
    with pytest.raises(pg.MethodError, match=r"steps=0, expected an int of at least 1"):
        Training(steps=0)
    with pytest.raises(pg.MethodError, match=r"ema=1.5, expected 0 <= ema < 1"):
        Training(ema=1.5)
    with pytest.raises(pg.MethodError, match="patience=0, expected an int of at least 1"):
        Training(patience=0)
    with pytest.raises(pg.MethodError, match="weight_decay=-1"):
        Training(weight_decay=-1.0)
    with pytest.raises(pg.MethodError, match="learning_rate=-1"):
        Training(learning_rate=-1)
