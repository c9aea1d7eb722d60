"""The documentation runs, and covers every public name."""

import inspect
import re
from pathlib import Path

import pytest

import p2t_jax as p2t

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FUNCTIONS = [name for name in p2t.__all__ if inspect.isfunction(getattr(p2t, name))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_snippet_of_a_page_runs_in_order(page):
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S))
    exec(compile(code, page.name, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", p2t.__all__)
def test_every_public_name_is_in_the_documentation(name):
    assert getattr(p2t, name).__doc__
    assert any(f"{name}" in page.read_text() for page in PAGES)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_documents_its_contract(name):
    function = getattr(p2t, name)
    doc = inspect.getdoc(function)
    for section in ("Args:", "Returns:", "Raises:", "Example:"):
        assert section in doc, section
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"^ +{argument}: ", doc, re.M), argument
