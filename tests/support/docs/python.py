"""Imports in the Python examples of the documents, resolved without importing packages of others."""

from __future__ import annotations

import ast
import importlib
from importlib.util import find_spec
from pathlib import Path

from tests.support.docs.markdown import Fence

OWN = ("batch", "serving", "trainer", "hubhead")


def compile_example(fence: Fence) -> ast.Module:
    """Return the syntax tree of an example, which may await at its top level.

    Raises:
        SyntaxError: the example is not valid.
    """
    compile(fence.text, fence.place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
    return ast.parse(fence.text, fence.place)


def find_missing_imports(tree: ast.Module) -> list[str]:
    """Return the modules and names that an example imports and that do not exist."""
    missing = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            missing += [alias.name for alias in node.names if not module_exists(alias.name)]
        elif isinstance(node, ast.ImportFrom) and node.module:
            if not module_exists(node.module):
                missing.append(node.module)
            elif node.module.partition(".")[0] in OWN:
                module = importlib.import_module(node.module)
                names = [alias.name for alias in node.names]
                missing += [f"{node.module}.{name}" for name in names if not _has(module, name)]
    return missing


def module_exists(name: str) -> bool:
    """Return whether a module or package is installed or of this repository; nothing of it is run."""
    top, *parts = name.split(".")
    spec = find_spec(top)
    if spec is None or not parts:
        return spec is not None
    for place in spec.submodule_search_locations or ():
        path = Path(place).joinpath(*parts)
        if path.is_dir() or path.with_suffix(".py").is_file() or any(path.parent.glob(f"{path.name}.*.so")):
            return True
    return False


def is_runnable(name: str) -> bool:
    """Return whether `python -m NAME` finds something to run."""
    top, *parts = name.split(".")
    spec = find_spec(top)
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    if spec and not parts and not places:
        return True  # a single module
    paths = [Path(place).joinpath(*parts) for place in places]
    return any(p.with_suffix(".py").is_file() or (p / "__main__.py").is_file() for p in paths)


def _has(module: object, name: str) -> bool:
    return hasattr(module, name) or module_exists(f"{getattr(module, '__name__', '')}.{name}")
