"""The README's example runs, and nothing exported is missing from the docs. Guides run when the docs are built."""

import importlib.util
import re
from pathlib import Path

import matplotlib
import pytest

import probgen as pg

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    scope = {}
    exec(example, scope)
    # A few divergent draws are a warning that may come and go with the rounding of a machine; nothing worse may come.
    assert "error" not in capsys.readouterr().out
    assert (tmp_path / "eight_schools.png").read_bytes().startswith(b"\x89PNG")
    # Reference means of posteriordb; four standard errors of 2000 effective draws.
    assert scope["tree"]["posterior/mu"].mean().item() == pytest.approx(4.41, abs=4 * 3.3 / 2000**0.5)
    assert scope["tree"]["posterior/theta"].sel(school="A").mean().item() == pytest.approx(
        6.15, abs=4 * 5.6 / 2000**0.5
    )


def test_every_exported_name_has_its_place_in_the_reference():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    listed = set(re.findall(r"auto\w+:: probgen\.(\w+)$", pages, re.M))
    assert set(pg.__all__) - listed == set(), "add them to docs/api/"
    assert listed - set(pg.__all__) == set(), "these are not exported"


def test_every_generative_name_has_its_place_in_the_reference():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    listed = set(re.findall(r"auto(?:class|function|data):: probgen\.generative\.(\w+)$", pages, re.M))
    assert set(pg.generative.__all__) - listed == set(), "add them to docs/api/"


def test_every_causal_name_has_its_place_in_the_reference():
    page = (ROOT / "docs" / "api" / "causal.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"auto(?:class|function|data):: probgen\.causal\.(\w+)$", page, re.M))
    assert set(pg.causal.__all__) - listed == set(), "add them to docs/api/causal.md"


def test_every_method_is_in_the_table_of_the_readme():
    rows = re.findall(r"^\| (`pg\..*?) \|", README, re.M)
    named = set(re.findall(r"pg\.(\w+)", "".join(rows)))
    assert {row.method.__name__ for row in pg.methods()} & set(pg.__all__) <= named
    assert named <= {row.method.__name__ for row in pg.methods()}


@pytest.mark.parametrize("path", re.findall(r"(?<=[(`])((?:docs|models)/(?!_)[\w./]+)", README))
def test_what_the_readme_points_to_exists(path):
    assert (ROOT / path).exists()


def test_the_tables_of_the_benchmarks_are_those_of_the_results():
    """`python benchmarks/tables.py` writes them."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert tables.filled(page) == page
