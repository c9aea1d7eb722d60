"""How the library is built: short files and functions, private names at home, one-way imports."""

import ast
import re
from pathlib import Path

import pytest

import p2t_jax

ROOT, TESTS = Path(p2t_jax.__file__).parent, Path(__file__).parent
TREES = {p.relative_to(ROOT).as_posix(): ast.parse(p.read_text()) for p in ROOT.rglob("*.py")}
# The files for the undocumented interfaces of JAX and of Numba; there is none for Optax's.
INTERNALS = {
    "_jax_internals.py": r"jax\.(_(?!_)|extend|interpreters)",
    "_host/kernels/numba_internals.py": r"numba\.(_(?!_)|core)",
    None: r"optax\._(?!_)",
}
OF_NAMEDTUPLES = ("_asdict", "_fields", "_replace")


def imports(tree):
    """Dotted names: `a.b` of `import a.b`, `a.b.c` of `from a.b import c`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def attributes(tree):
    return (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))


def functions(tree):
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def own_lines(function):
    """Lines of the body, without the docstring and without functions inside of it."""
    body = function.body[ast.get_docstring(function) is not None :]
    inside = [node for node in body if isinstance(node, ast.FunctionDef)]
    whole, others = (sum(n.end_lineno - n.lineno + 1 for n in nodes) for nodes in (body, inside))
    return whole - others


@pytest.mark.parametrize("folder", [ROOT, TESTS])
def test_files_are_short(folder):
    for path in folder.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


def test_functions_are_short():
    """Or the module's docstring names the long function and says why it is long."""
    for path, tree in TREES.items():
        long = {function.name for function in functions(tree) if own_lines(function) > 40}
        docstring = ast.get_docstring(tree) or ""
        assert all("long" in docstring and f"`{name}`" in docstring for name in long), (path, long)


def test_private_names_stay_in_their_module():
    modules = {Path(path).stem for path in TREES}
    for path, tree in TREES.items():
        names = {n.rpartition(".")[2] for n in imports(tree) if n.startswith("p2t_jax.")} - modules
        if path not in INTERNALS:
            of_others = (a for a in attributes(tree) if ast.unparse(a.value) not in ("self", "cls"))
            names |= {attribute.attr for attribute in of_others} - {*OF_NAMEDTUPLES}
        assert not {name for name in names if re.match("_[^_]", name)}, path


@pytest.mark.parametrize("home", INTERNALS)
def test_undocumented_interfaces_are_used_in_one_file(home):
    undocumented = re.compile(INTERNALS[home])
    users = [
        path
        for path, tree in TREES.items()
        if any(map(undocumented.match, [*imports(tree), *map(ast.unparse, attributes(tree))]))
    ]
    assert users == ([home] if home else [])


@pytest.mark.parametrize(
    ("importer", "barred"),
    [
        ("_jax_internals", "p2t_jax"),
        ("_vectors/", r"p2t_jax\.(?!_vectors|_jax_internals)"),
        ("_vectors/(?!inference|__init__)", r"p2t_jax\._vectors\.inference"),
        ("_leaves", r"p2t_jax\.(?!_vectors|_jax_internals)"),
        ("_host/kernels/", r"jax|p2t_jax\.(?!_host\.kernels)"),
        ("_host/", r"p2t_jax\.(?!_host|_leaves|_jax_internals)"),
        ("(?!_host/)", "numba"),
    ],
)
def test_imports_run_one_way(importer, barred):
    found = {
        name for path, tree in TREES.items() if re.match(importer, path) for name in imports(tree)
    }
    assert found
    assert not {name for name in found if re.match(barred, name)}
