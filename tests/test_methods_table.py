"""The table of methods."""

import inspect
import pkgutil

import numpyro
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen.backends import registry
from probgen.infer.infer import check_model
from probgen.infer.method import Method, Need
from probgen.infer.methods import methods


def test_methods_are_found_and_complete():
    table = methods()
    names = [row.name for row in table]
    assert names == sorted(set(names))
    assert {"nuts", "hmc"} <= set(names)
    for row in table:
        assert issubclass(row.method, Method)
        assert not inspect.isabstract(row.method)
        assert row.summary
        assert row.backends
        assert table.find(row.name) is row.method
        assert row.method().name == row.name  # every method has defaults


def test_a_row_says_what_a_method_needs():
    row = next(row for row in methods() if row.name == "nuts")
    assert row.method is pg.NUTS
    assert row.backends[0] == "blackjax"
    assert row.needs == ("a density with a gradient in every latent site",)


def test_the_table_is_printable():
    table = methods()
    lines = repr(table).splitlines()
    assert lines[0].split() == ["method", "class", "backends", "needs", "summary"]
    assert len(lines) == len(table) + 1
    assert any(line.startswith("nuts ") and "pg.NUTS" in line for line in lines)
    assert table._repr_html_().count("<tr>") == len(table) + 1


def test_an_unknown_name_is_an_error_with_a_suggestion():
    with pytest.raises(pg.MethodError, match=r"no method 'nust'. Did you mean 'nuts'\?"):
        methods().find("nust")


def test_registered_engines_show_up(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})

    class Toy:
        KERNELS = {"nuts": lambda method, warmup: None}

    registry.register("toy", Toy())
    row = next(row for row in methods() if row.name == "nuts")
    assert row.backends[-1] == "toy"
    assert "toy" not in next(row for row in methods() if row.name == "hmc").backends


def test_classes_of_tests_and_users_are_not_listed():
    class Mine(pg.NUTS):
        name = "mine"

    assert "mine" not in [row.name for row in methods()]


def test_looking_loads_every_module_of_infer():
    import importlib
    import sys

    methods()
    path = importlib.import_module("probgen.infer.methods").__file__.rpartition("/")[0]
    assert {f"probgen.infer.{module.name}" for module in pkgutil.iter_modules([path])} <= set(sys.modules)


def test_a_method_made_for_minibatches_is_refused_where_there_are_none():
    model = pg.Model(
        lambda y: numpyro.sample("y", dist.Normal(numpyro.sample("m", dist.Normal()), 1.0), obs=y), {"y": 1.0}
    )
    made_for_them = [row for row in methods() if Need.subsampling.value in row.needs]
    assert "hmcecs" in [row.name for row in made_for_them]
    for row in made_for_them:
        with pytest.raises(pg.MethodError, match=rf"no plate of the model has subsample_size.*{row.method.__name__}"):
            check_model(model, row.method())
