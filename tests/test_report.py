"""The report: what it says is what is in the result, nothing else gets into the page, and a browser can show it."""

import base64
import hashlib
import html.parser
import json
import math
import re
import sys

import arviz
import chromium
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray
from typer.testing import CliRunner

import probgen as pg
from probgen.cli import app
from probgen.infer.infer import _settings as recorded
from probgen.report.draws import Draws, number
from probgen.report.html import report
from probgen.report.page import TIMES
from probgen.report.record import _method
from probgen.run.output import check_writable

SECTIONS = [
    "findings", "model", "priors", "summary", "chains", "pairs", "energy", "predictive", "loo", "settings", "reproduce",
]  # fmt: skip
DATA = {"sigma": [15.0, 10, 16, 11, 9, 11, 10, 18], "y": [28.0, 8, -3, 7, -1, 1, 18, 12]}
EVIL = '"><img src=x onerror=alert(1)><script>alert(2)</script>\x07&lt;$\\frac{'


def eight_schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(sigma)):
        z = numpyro.sample("z", dist.Normal())
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def pooled(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    with numpyro.plate("school", len(sigma)):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def one_rate(y=None):
    rate = numpyro.sample("rate", dist.Gamma(1.0, 0.1))
    with numpyro.plate("row", 200):
        numpyro.sample("y", dist.Poisson(rate), obs=y)


def plain(cell):
    """A cell with the minus that programs write."""
    return cell.replace("\N{MINUS SIGN}", "-")


def value(cell):
    return float(plain(cell))


class Page(html.parser.HTMLParser):
    """A page as a reader of its source would take it apart."""

    def __init__(self, path):
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.tags, self.tables, self.said, self.section = [], {}, {}, ""
        self.skipping = self.cell = False
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.skipping = tag in ("script", "style")
        if tag == "section":
            self.section = attrs["id"]
        elif tag == "table":
            self.tables.setdefault(self.section, []).append([])
        elif tag == "tr":
            self.tables[self.section][-1].append([])
        elif tag in ("td", "th"):
            self.tables[self.section][-1][-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        self.skipping = self.skipping and tag not in ("script", "style")
        if tag in ("td", "th"):
            self.cell = False

    def handle_data(self, data):
        if self.skipping:
            return
        self.said[self.section] = self.said.get(self.section, "") + data
        if self.cell:
            self.tables[self.section][-1][-1][-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def model():
    return pg.Model(eight_schools, DATA, coords={"school": list("ABCDEFGH")})


@pytest.fixture(scope="module")
def tree(model):
    return pg.infer(model, pg.NUTS(target_accept=0.95), draws=400, warmup=400, seed=1)


@pytest.fixture(scope="module")
def page(model, tree, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert report(tree, path, model=model) == path
    return path


@pytest.fixture(scope="module")
def laplace():
    """An approximation that is good: of a normal posterior."""
    model = pg.Model(pooled, DATA)
    return pg.infer(model, pg.Laplace(), draws=500, chains=2, seed=0), model


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium.find() is None:
        pytest.skip("there is no Chromium on this machine")
    with chromium.Chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


def healthy(page, *missing):
    """No section failed, and only those that must be are missing."""
    assert "could not be made" not in page.text
    empty = [a["href"][1:] for tag, a in page.tags if tag == "a" and a.get("class") == "empty"]
    assert empty == list(missing)


# -- what it says ----------------------------------------------------------------------------------------------------


def test_every_section_is_there_and_says_how_to_read_it(page):
    page = Page(page)
    healthy(page)
    assert [attrs["id"] for attrs in page.all("section")] == ["verdict", *SECTIONS]
    assert len([a for a in page.all("p") if a.get("class") == "about"]) == len(SECTIONS)
    assert "Eight schools" in page.text.split("<h1>")[1].split("</h1>")[0]


def test_the_verdict_is_that_of_the_checks(page, model, tree):
    found = pg.check(tree, model)
    names = {finding.severity.name for finding in found}
    expected = "Do not use" if "error" in names else "Look before using" if "warning" in names else "Good to use"
    page = Page(page)
    assert expected in page.said["verdict"]
    for finding in found:
        assert finding.what[1:] in page.said["findings"]
        assert finding.advice in page.said["findings"]


def test_the_table_is_the_summary_of_arviz(page, tree):
    (table,) = Page(page).tables["summary"]
    expected = arviz.summary(tree, ci_kind="eti", ci_prob=0.89)
    lines = [line.split() for line in expected.to_string(index=False).splitlines()[1:]]
    assert [row[0] for row in table[1:]] == expected.index.tolist()
    tails = arviz.ess(tree, method="tail", prob=(0.05, 0.95))
    tails = np.concatenate([np.ravel(tails[name].values) for name in tree["posterior"].data_vars])
    for line, tail in zip(lines, tails, strict=True):
        line[5] = f"{math.floor(tail)}"
    assert [[plain(cell) for cell in row[1:]] for row in table[1:]] == lines


def test_facts_are_those_of_the_tree(page, tree):
    said = Page(page).said["verdict"]
    assert f"4 {TIMES} 400" in said
    summary = arviz.summary(tree, round_to="none")
    assert f"{summary['r_hat'].max():.3f}" in said
    assert f"{summary['ess_bulk'].min():,.0f}" in said or "smallest ESS" in said


def test_leave_one_out_is_that_of_arviz(page, model, tree):
    (table,) = Page(page).tables["loo"]
    expected = arviz.loo(pg.log_likelihood(model, tree), pointwise=True)
    row = dict(zip(table[0], table[1], strict=True))
    assert value(row["elpd"]) == pytest.approx(expected.elpd, abs=0.01)
    assert float(row["standard error"]) == pytest.approx(expected.se, abs=0.01)
    # ArviZ takes another efficiency of the chains for the length of the tail.
    assert float(row["largest k-hat"]) == pytest.approx(float(expected.pareto_k.max()), abs=0.15)
    assert row["observations"] == "8"


def test_predictions_tell_a_model_that_misses_the_data(tmp_path):
    y = np.random.default_rng(0).negative_binomial(1, 0.1, 200)  # variance ten times the mean
    rate = np.random.default_rng(1).gamma(1 + y.sum(), 1 / (0.1 + 200), (2, 200))
    groups = {"posterior": xarray.Dataset({"rate": (("chain", "draw"), rate)})}
    tree = xarray.DataTree.from_dict(groups | {"observed_data": xarray.Dataset({"y": ("row", y)})})
    page = Page(report(tree, tmp_path / "r.html", model=pg.Model(one_rate, {"y": y})))
    rows = {row[0]: row for row in page.tables["predictive"][0]}
    assert 0.01 < value(rows["mean of y"][-1]) < 0.99
    assert value(rows["sd of y"][-1]) == 0
    assert value(rows["sd of y"][1]) == pytest.approx(y.std(), rel=0.01)


def test_the_call_that_it_shows_makes_the_same_draws(page, tree):
    (code,) = re.findall(r"<pre[^>]*><code>(import jax.*?)</code>", page.read_text(), re.S)
    scope = {"eight_schools": eight_schools, **DATA}
    exec(html.unescape(code), scope)
    assert "pg.NUTS(target_accept=0.95)" in code
    for name in ("mu", "theta"):
        np.testing.assert_array_equal(scope["tree"]["posterior"][name].values, tree["posterior"][name].values)


METHODS = [row.method() for row in pg.methods() if row.method.__name__ in pg.__all__]
METHODS += [pg.NUTS(backend="numpyro", metric="dense"), pg.SVI(guide=pg.FullRank()), pg.SVI(objective=pg.Renyi(0.5))]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_every_method_is_written_as_it_was(method):
    attrs = {"method": method.name, "settings": json.dumps(recorded(method)), "backend": method.engine}
    assert eval(_method(attrs), {"pg": pg}) == method


def test_settings_are_all_there(page, tree):
    table = dict(Page(page).tables["settings"][0][1:])
    assert table["seed"] == "1"
    assert table["setting target_accept"] == "0.95"
    assert table["version jax"] == jax.__version__
    assert {name.replace("_", " ") for name in tree.attrs if name != "settings"} <= set(table)


# -- other results ---------------------------------------------------------------------------------------------------


def posterior(chains=4, draws=300, seed=0, **variables):
    rng = np.random.default_rng(seed)
    made = {"x": (("chain", "draw"), rng.normal(size=(chains, draws)))}
    made |= {"v": (("chain", "draw", "i"), rng.normal(size=(chains, draws, 3)))}
    return xarray.DataTree.from_dict({"posterior": xarray.Dataset({**made, **variables})})


WITHOUT_MODEL = ("model", "priors", "energy", "predictive", "loo", "settings", "reproduce")


def test_a_result_from_elsewhere_says_what_is_missing(tmp_path):
    page = Page(report(posterior(), tmp_path / "r.html"))
    healthy(page, *WITHOUT_MODEL)
    assert "Good to use" in page.said["verdict"]
    assert "Pass it: pg.report(tree, path, model=model)" in page.said["model"]
    assert "does not say by which method" in page.said["reproduce"]


@pytest.mark.parametrize(("chains", "draws"), [(1, 300), (1, 1), pytest.param(2, 3, marks=pytest.mark.slow), (40, 100)])
def test_few_chains_and_few_draws(chains, draws, tmp_path):
    page = Page(report(posterior(chains, draws), tmp_path / "r.html"))
    assert "could not be made" not in page.text
    if (chains, draws) != (40, 100):  # enough draws in all, and perhaps too few of each chain
        assert "Look before using" in page.said["verdict"]
    if chains == 1 and draws == 300:
        assert "one chain only" in page.said["verdict"]


def test_numbers_that_are_none_and_constants(tmp_path):
    chain = np.broadcast_to(np.arange(4.0)[:, None], (4, 300))
    bad = np.random.default_rng(1).normal(size=(4, 300))
    bad[2, 7] = np.nan
    tree = posterior(
        stuck=(("chain", "draw"), chain),
        bad=(("chain", "draw"), bad),
        constant=(("chain", "draw"), np.ones((4, 300))),
        flag=(("chain", "draw"), bad > 0),
        name=(("chain", "draw"), np.full((4, 300), "text")),
        perchain=(("chain",), np.arange(4)),
    )
    page = Page(report(tree, tmp_path / "r.html"))
    healthy(page, *WITHOUT_MODEL)
    assert "Do not use" in page.said["verdict"]
    labels = [row[0] for row in page.tables["summary"][0][1:]]
    assert labels == ["x", "v[0]", "v[1]", "v[2]", "stuck", "bad", "constant", "flag"]


def test_nothing_that_can_be_drawn(tmp_path):
    tree = xarray.DataTree.from_dict({"posterior": xarray.Dataset({"c": (("chain", "draw"), np.ones((2, 50)))})})
    page = Page(report(tree, tmp_path / "r.html"))
    healthy(page, "model", "priors", "chains", "pairs", "energy", "predictive", "loo", "settings", "reproduce")


def test_discrete_sites(tmp_path):
    def coins(heads=None):
        bias = numpyro.sample("bias", dist.Beta(8.0, 2.0))
        with numpyro.plate("coin", 4):
            fair = numpyro.sample("fair", dist.Bernoulli(0.5))
            numpyro.sample("heads", dist.Binomial(10, jnp.where(fair == 1, 0.5, bias)), obs=heads)

    model = pg.Model(coins, {"heads": [5, 9, 4, 8]})
    rng = np.random.default_rng(0)
    posterior = xarray.Dataset(
        {
            "bias": (("chain", "draw"), rng.beta(20, 5, (2, 200))),
            "fair": (("chain", "draw", "coin"), rng.binomial(1, [0.9, 0.2, 0.95, 0.3], (2, 200, 4))),
        }
    )
    groups = {"posterior": posterior, "observed_data": xarray.Dataset({"heads": ("coin", [5, 9, 4, 8])})}
    page = Page(report(xarray.DataTree.from_dict(groups), tmp_path / "r.html", model=model))
    healthy(page, "energy", "settings", "reproduce")
    assert "fair[2]" in page.said["priors"]


def test_a_good_approximation_is_weighted(laplace, tmp_path):
    tree, model = laplace
    assert tree.attrs["pareto_k"] <= 0.7
    page = Page(report(tree, tmp_path / "r.html", model=model))
    healthy(page, "chains", "pairs", "energy")
    assert page.tables["summary"][0][0] == ["", "mean", "sd", "89 % from", "to"]
    assert "R-hat" not in page.said["summary"]
    assert "Good to use" in page.said["verdict"]
    log_w = tree["sample_stats/log_weight"].values.ravel()
    row = page.tables["summary"][0][1]
    assert row[0] == "mu"
    assert value(row[1]) == pytest.approx(np.sum(np.exp(log_w) * tree["posterior/mu"].values.ravel()), abs=0.01)


def test_weights_that_cannot_be_trusted_are_not_used(tmp_path):
    rng = np.random.default_rng(0)
    tree = posterior(2, 500)
    stats = xarray.Dataset({"log_weight": (("chain", "draw"), 30 * rng.normal(size=(2, 500)))})
    tree["sample_stats"] = xarray.DataTree(stats)
    tree.attrs = {"kind": "approximate", "approximate": "Draws from a guess.", "pareto_k": 5.2}
    page = Page(report(tree, tmp_path / "r.html"))
    assert "Do not use" in page.said["verdict"]
    assert "Draws from a guess" in page.said["verdict"]
    assert "describe the approximation itself" in page.said["summary"]
    row = next(row for row in page.tables["summary"][0] if row[0] == "x")
    assert value(row[1]) == pytest.approx(tree["posterior/x"].mean().item(), abs=0.006)


def weighted(chains=3, draws=400, **attrs):
    """Draws from a normal of sd 2, weighted to be standard normal."""
    x = 2 * np.random.default_rng(5).normal(size=(chains, draws))
    log_w = -(x**2) / 2 + x**2 / 8
    groups = {
        "posterior": xarray.Dataset({"x": (("chain", "draw"), x)}),
        "sample_stats": xarray.Dataset({"log_weight": (("chain", "draw"), log_w)}),
    }
    tree = xarray.DataTree.from_dict(groups)
    tree.attrs = attrs
    return tree, x, log_w


def test_resampling_by_weight_is_within_one_step_of_the_weights():
    """Systematic resampling: each draw comes within one of its expected number of times."""
    tree, _, log_w = weighted(kind="approximate", pareto_k=0.1)
    draws = Draws(tree)
    w = np.exp(log_w).ravel()
    w /= w.sum()
    counts = np.bincount(draws.kept(500), minlength=w.size)
    assert counts.sum() == 500
    assert np.all(np.abs(counts - 500 * w) <= 1)
    assert draws.weight_ess == pytest.approx(1 / np.sum(w**2))


def test_weighted_moments_against_resampled_ones():
    tree, x, log_w = weighted(kind="approximate", pareto_k=0.1)
    row = Draws(tree).summary.loc["x"]
    w = np.exp(log_w).ravel() / np.exp(log_w).sum()
    mean = np.sum(w * x.ravel())
    assert row["mean"] == pytest.approx(mean)
    assert row["sd"] == pytest.approx(np.sqrt(np.sum(w * (x.ravel() - mean) ** 2)))
    for end, p in (("lower", 0.055), ("upper", 0.945)):
        below = w[x.ravel() <= row[end]].sum()
        assert p <= below < p + w.max() + 1e-12


def test_runs_of_particles_count_alike(tmp_path):
    """A chain of weighted draws that is not an approximation is a run of its own, whatever its total weight."""
    tree, _, _ = weighted()
    tree["sample_stats"]["log_weight"] = tree["sample_stats"]["log_weight"] + xarray.DataArray(
        [0.0, 50, -9], dims="chain"
    )
    per_chain = Draws(tree).weights.reshape(3, -1).sum(1)
    np.testing.assert_allclose(per_chain, 1 / 3)
    page = Page(report(tree, tmp_path / "r.html"))
    healthy(page, "model", "priors", "pairs", "energy", "predictive", "loo", "settings", "reproduce")
    assert "take the weights into account" in page.said["summary"]
    assert "without their weights" in page.said["chains"]


def test_number():
    cases = [
        ((1234.567,), "1235"), ((0.00012345,), "0.000123"), ((-1.5, 1.0), "\N{MINUS SIGN}1.50"), ((3.14159, 100.0), "3"),
        ((0.0,), "0"), ((math.nan,), "nan"), ((1e12,), "1e+12"), ((2.0, 1e-9), "2"),
    ]  # fmt: skip
    assert [number(*args) for args, _ in cases] == [expected for _, expected in cases]


def test_a_prior_with_long_tails_is_cut_and_not_scaled_up():
    import matplotlib.pyplot as plt

    from probgen.report.figures import _density

    rng = np.random.default_rng(0)
    values = np.abs(rng.standard_cauchy(20_000))
    _, axes = plt.subplots()
    _density(axes, values, "black", (0.0, 3.0))
    x, y = axes.lines[0].get_xdata(), axes.lines[0].get_ydata()
    plt.close("all")
    assert np.trapezoid(y, x) == pytest.approx(2 / np.pi * math.atan(3), abs=0.02)
    assert np.interp(1.0, x, y) == pytest.approx(1 / np.pi, rel=0.1)


# -- several results -------------------------------------------------------------------------------------------------


def test_comparison(model, tree, laplace, tmp_path):
    other, its_model = laplace
    page = Page(report({"NUTS": tree, EVIL: other}, tmp_path / "r.html", model=[model, its_model]))
    healthy(page)
    assert [attrs["id"] for attrs in page.all("section")][:4] == ["verdict", "numbers", "forest", "elpd"]
    (table,) = page.tables["forest"]
    row = next(row for row in table if row[0] == "mu")
    a, b = Draws(tree).summary.loc["mu"], Draws(other).summary.loc["mu"]
    weights = Draws(other).weight_ess or 1000
    apart = abs(a["mean"] - b["mean"]) / math.hypot(a["mcse_mean"], b["sd"] / weights**0.5)
    assert value(row[-1]) == pytest.approx(apart, abs=0.06)
    assert ["method", "nuts", "laplace"] in page.tables["settings"][0]
    assert len(page.all("script")) == 1
    expected = arviz.compare(
        {"NUTS": pg.log_likelihood(model, tree), "b": pg.log_likelihood(its_model, other)}, round_to="none"
    )
    scores = page.tables["elpd"][0][1:]
    assert [row[0] == "NUTS" for row in scores] == [name == "NUTS" for name in expected.index]
    for shown, known in zip(scores, expected.itertuples(), strict=True):
        assert value(shown[1]) == pytest.approx(known.elpd, abs=0.02)
        assert value(shown[2]) == pytest.approx(known.elpd_diff, abs=0.02)
        assert value(shown[4]) == pytest.approx(known.weight, abs=0.03)


# -- what gets into the page -----------------------------------------------------------------------------------------


def test_nothing_is_fetched(page):
    page = Page(page)
    for tag, attrs in page.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert value.startswith(("#", "data:image/png;base64,", "data:,")), (tag, value[:60])
            if name == "style":
                assert "url(" not in value.replace("url(#", "")
    assert "@import" not in page.text
    assert page.text.count("url(") == page.text.count("url(#")
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv"))
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        html.unescape(policy)
        == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


def test_the_page_is_well_made(page):
    page = Page(page)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {attrs["href"][1:] for tag, attrs in page.tags if attrs.get("href", "").startswith("#")}
    assert targets <= set(ids)
    clips = set(re.findall(r"url\(#([^)]+)\)", page.text))
    assert clips <= set(ids)
    pictures = [attrs for attrs in page.all("svg") if attrs.get("aria-hidden") != "true"]
    assert len(pictures) > 20
    assert all(attrs["role"] == "img" and len(attrs["aria-label"]) > 10 for attrs in pictures)
    headings = [tag for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == "h1"
    assert set(headings[1:]) <= {"h2", "h3"}


def evil_tree(model):
    tree = pg.infer(model, pg.NUTS(), draws=60, warmup=100, chains=2, seed=0)
    tree.attrs |= {"note": EVIL, EVIL: "1", "ended_because": EVIL}
    return tree


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    def program(y=None):
        loc = numpyro.sample("<script>alert(3)", dist.Normal())
        with numpyro.plate("<b>&row", 3):
            numpyro.sample("a", dist.Normal(loc, 1.0))
            numpyro.sample("<svg><script>", dist.Normal(loc, 1.0), obs=y)

    model = pg.Model(program, {"y": [0.1, 0.2, 0.3]}, coords={"<b>&row": [EVIL, "b/c", "$x^{"]})
    path = tmp_path_factory.mktemp("evil") / "r.html"
    return report(evil_tree(model), path, model=model, title=EVIL)


def test_names_cannot_become_part_of_the_page(evil):
    page = Page(evil)
    assert "could not be made" not in page.text
    assert len(page.all("script")) == 1
    assert page.all("img") == []
    assert page.all("b") == []
    for tag, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs), tag
    assert "\x07" not in page.text
    labels = [row[0] for row in page.tables["summary"][0][1:]]
    shown = EVIL.replace("\x07", "\N{REPLACEMENT CHARACTER}")
    assert labels == ["<script>alert(3)", f"a[{shown}]", "a[b/c]", "a[$x^{]"]


# -- files and mistakes ----------------------------------------------------------------------------------------------


def test_errors_come_before_any_work(model, tree, tmp_path, monkeypatch):
    def never(*args):
        raise AssertionError("computed")

    monkeypatch.setattr(sys.modules["probgen.report.html"], "diagnose", never)  # pg.report is the function
    other = pg.Model(one_rate, {"y": np.zeros(200, int)})
    cases = [
        ((tree, tmp_path / "r.txt"), {}, pg.StoreError, "has the suffix '.txt', expected '.html'"),
        ((tree, tmp_path / "none" / "r.html"), {}, pg.StoreError, "does not exist"),
        ((3, tmp_path / "r.html"), {}, pg.DataError, "tree must be a DataTree or several, got int"),
        (([], tmp_path / "r.html"), {}, pg.DataError, "there is no tree"),
        ((xarray.DataTree(), tmp_path / "r.html"), {}, pg.DataError, "no posterior with the dims"),
        (
            (tree, tmp_path / "r.html"),
            {"model": eight_schools},
            pg.ModelError,
            "model must be a pg.Model, got function",
        ),
        ((tree, tmp_path / "r.html"), {"model": other}, pg.ModelError, "Pass the model that was fitted"),
        (([tree, tree], tmp_path / "r.html"), {"model": [model]}, pg.ModelError, "there are 2 trees and 1 models"),
    ]
    for args, options, kind, message in cases:
        with pytest.raises(kind, match=re.escape(message)):
            report(*args, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_fails_leaves_the_old_one(tree, tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(pg.StoreError, match="No space left"):
        report(posterior(2, 50), path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["r.html"]
    assert check_writable(path, ".html") == path


def test_no_figure_stays_open_and_no_style_stays_changed(tmp_path):
    import matplotlib.pyplot as plt

    before = dict(plt.rcParams)
    mine = plt.figure()
    report(posterior(2, 100), tmp_path / "r.html")
    assert plt.get_fignums() == [mine.number]
    plt.close(mine)
    assert dict(plt.rcParams) == before


@pytest.mark.slow
def test_a_thousand_entries_make_a_page_that_can_be_sent(tmp_path):
    rng = np.random.default_rng(0)
    tree = posterior(4, 1000, theta=(("chain", "draw", "unit"), rng.normal(size=(4, 1000, 1000))))
    path = report(tree, tmp_path / "r.html")
    assert path.stat().st_size < 5e6
    assert len(Page(path).tables["summary"][0]) == 1005


# -- on the command line ---------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run `probgen` in a folder of its own; precision is put back."""
    monkeypatch.chdir(tmp_path)
    yield lambda *args: CliRunner().invoke(app, list(args))
    jax.config.update("jax_enable_x64", True)


def test_the_command_reports_on_files(command, tree, tmp_path):
    tree.to_netcdf(tmp_path / "run.nc", engine="h5netcdf")
    result = command("report", "run.nc", "--out", "r.html", "--model", "eight_schools", "--no-cache")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == "Report: r.html"
    page = Page(tmp_path / "r.html")
    healthy(page)
    assert "Effects of coaching" in page.text.split("<h1>")[1].split("</h1>")[0]
    assert "import numpyro" not in page.said["model"]
    assert "def model(sigma" in page.said["model"]


def test_the_command_puts_results_side_by_side(command, tmp_path):
    for i, name in enumerate(("a", "b")):
        posterior(2, 100, seed=i).to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
    assert command("report", "a.nc", "b.nc").exit_code == 0
    page = Page(tmp_path / "report.html")
    assert [row[0] for row in page.tables["numbers"][0][1:]] == ["a", "b"]


def test_a_fit_writes_its_report(command, tree, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["probgen.infer.infer"], "infer", lambda *args, **settings: tree)
    result = command("fit", "eight_schools", "--report", "out.html", "--no-cache")
    assert result.exit_code == 0, result.output
    assert "Report: out.html" in result.stdout
    healthy(Page(tmp_path / "out.html"))
    result = command("fit", "eight_schools", "--report", "nowhere/out.html")
    assert "the folder nowhere of the output out.html does not exist" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["none.nc"], 1, "none.nc does not exist"),
        (["none.nc", "--out", "r.txt"], 1, "has the suffix '.txt', expected '.html'"),
        (["none.nc", "--data", "d.json"], 2, "--data goes with --model"),
        ([], 2, "Missing argument"),
    ],
)
def test_mistakes_on_the_command_line(command, args, code, message):
    result = command("report", *args)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.replace("│", "").split())


# -- in a browser ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1280, 800, 390, 320])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it(page, browser, width, dark, tmp_path):
    browser.open(page, width, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("document.querySelectorAll('.picture svg').length") > 20
    paper = browser.value("getComputedStyle(document.querySelector('#summary')).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 200) == dark
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000


def test_names_do_not_run_in_a_browser(evil, browser):
    browser.open(evil, 390)
    assert browser.complaints() == []
    assert browser.requests() == []
    assert browser.value("document.documentElement.scrollWidth") <= 390
    assert browser.value("document.querySelectorAll('script').length") == 1


def test_the_table_is_sorted_and_filtered(page, browser, tree):
    browser.open(page)
    column = (
        "Array.from(document.querySelectorAll('#summary tbody tr:not([hidden])')).map(r => r.cells[%d].textContent)"
    )
    browser.value("document.querySelectorAll('#summary th button')[1].click()")
    means = [value(cell) for cell in browser.value(column % 1)]
    assert means == sorted(means, reverse=True)
    browser.value("document.querySelectorAll('#summary th button')[0].click()")
    assert browser.value(column % 0) == sorted(browser.value(column % 0))
    assert browser.value("document.querySelector('#summary th[aria-sort]').getAttribute('aria-sort')") == "ascending"
    browser.value(
        "(() => { const i = document.querySelector('#summary input'); i.value = 'THETA'; "
        "i.dispatchEvent(new Event('input')); })()"
    )
    assert browser.value(column % 0) == [f"theta[{school}]" for school in "ABCDEFGH"]
    assert browser.value("document.querySelector('#summary output').textContent") == "8 of 18 rows"


def test_without_the_script_nothing_is_lost(page, browser):
    browser.open(page, script=False)
    assert browser.complaints() == []
    assert Page(page).tables["summary"][0][1][0] == "mu"


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrasts_are_those_of_wcag(page):
    """Text 4.5 : 1, graphics 3 : 1, in light and dark."""
    from probgen.base import palette

    themes = re.findall(r":root \{(.*?)\}", page.read_text(), re.S)[:2]
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", theme)) for theme in themes)
    for theme in (light, dark):
        for text in ("ink", "quiet", "link"):
            for surface in ("back", "paper", "sunk"):
                assert contrast(theme[text], theme[surface]) >= 4.5, (text, surface)
        for tone in ("good", "look", "bad"):
            for text in (tone, "ink", "quiet"):
                assert contrast(theme[text], theme[f"{tone}-back"]) >= 4.5, (tone, text)
        for colour in (*palette.SERIES, palette.ACCENT, theme["line"], theme["plate"]):
            assert contrast(colour, theme["paper"]) >= 3, colour
