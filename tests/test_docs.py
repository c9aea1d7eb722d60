"""Every snippet of the documentation runs by itself, and every public name is documented."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import p2t_jax as p2t

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
# Pages whose programs take longest. `test_frameworks.py` goes the same ways.
LONG = {"docs/first_steps.md", *(p for p in TEXTS if p.startswith("docs/frameworks/"))}
MODULES = [
    p2t,
    *(
        importlib.import_module(f"p2t_jax.{module.name}")
        for module in pkgutil.iter_modules(p2t.__path__)
        if not module.name.startswith("_")
    ),
]


def snippets():
    for page, text in TEXTS.items():
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S):
            line = text.count("\n", 0, match.start(1))
            marks = [pytest.mark.slow] if page in LONG else []
            yield pytest.param("\n" * line + match[1], page, id=f"{page}:{line}", marks=marks)


@pytest.mark.parametrize(("code", "page"), [*snippets()])
def test_every_snippet_runs_by_itself(code, page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page, "exec"), {})


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_to_a_file_leads_to_one(page):
    targets = re.findall(r"\]\(\s*([^)#\s]+)", TEXTS[page])
    targets += re.findall(r'(?:src|href)="([^"#]+)"', TEXTS[page])
    for target in targets:
        is_elsewhere = re.match("[a-z]+:", target)
        assert is_elsewhere or (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("page", TEXTS)
def test_every_test_that_is_named_exists(page):
    for file, name in re.findall(r"`(test_\w+\.py)::(test_\w+)`", TEXTS[page]):
        tests = ast.walk(ast.parse((ROOT / "tests" / file).read_text()))
        assert name in {t.name for t in tests if isinstance(t, ast.FunctionDef)}, f"{file}::{name}"


def public(module):
    """The functions and classes that a module offers: `__all__`, or those defined in it."""
    names = getattr(module, "__all__", None)
    if names is None:
        own = vars(module).items()
        names = [n for n, x in own if getattr(x, "__module__", None) == module.__name__]
    objects = ((name, getattr(module, name)) for name in names if not name.startswith("_"))
    return {name: x for name, x in objects if inspect.isfunction(x) or inspect.isclass(x)}


FUNCTIONS = {x for module in MODULES for x in public(module).values() if inspect.isfunction(x)}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_name_is_documented(module):
    assert module.__doc__
    assert public(module)
    for name, x in public(module).items():
        assert x.__doc__, name
        guide = (text for page, text in TEXTS.items() if not page.startswith("docs/api/"))
        assert any(re.search(rf"\b{name}\b", text) for text in guide), name


def referenced():
    """The objects that the API reference documents, by the directives of autodoc."""
    directive = re.compile(r"^\.\. (\w*module|autofunction|autoclass):: (.+)$")
    for page, text in TEXTS.items():
        module = ""
        for kind, name in (m.groups() for m in map(directive.match, text.splitlines()) if m):
            if "module" in kind:
                module = name
            elif page.startswith("docs/api/"):
                yield getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_name_is_in_the_api_reference_once(module):
    entries = [*referenced()]
    for name, x in public(module).items():
        assert entries.count(x) == 1, name


@pytest.mark.parametrize(
    "function", sorted(FUNCTIONS, key=lambda f: f.__name__), ids=lambda function: function.__name__
)
def test_every_public_function_documents_its_contract(function):
    doc = inspect.getdoc(function)
    signature = inspect.signature(function)
    returns = [] if signature.return_annotation is None else ["Returns:"]
    for section in ("Args:", *returns, "Raises:", "Example:"):
        assert section in doc, section
    for argument in signature.parameters:
        assert re.search(rf"^ +{argument.strip('*')}: |^ +\*+{argument}: ", doc, re.M), argument
