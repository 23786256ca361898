"""Every demonstration of the gallery runs, and its numbers lie where its page says that they must."""

import importlib.util
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[1] / "models"
DEMOS = sorted(path.parent.name for path in MODELS.glob("*/demo.py"))
FAST = {"ddpm", "absorbing_diffusion"}
"""A few; all of them take a quarter of an hour."""


def load(name):
    spec = importlib.util.spec_from_file_location(f"demo_{name}", MODELS / name / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    return demo


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in DEMOS])
def test_a_demonstration_shows_what_its_page_says(name):
    demo = load(name)
    numbers = demo.main()
    assert set(numbers) == set(demo.EXPECTED)
    outside = {k: v for k, v in numbers.items() if not demo.EXPECTED[k][0] <= v <= demo.EXPECTED[k][1]}
    assert not outside


@pytest.mark.parametrize("name", DEMOS)
def test_a_demonstration_has_a_page(name):
    page = (MODELS / name / "README.md").read_text(encoding="utf-8")
    assert page.startswith("# ")
    ranges = load(name).EXPECTED.values()
    assert ranges
    assert all(low < high for low, high in ranges)
