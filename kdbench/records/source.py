"""Hashes of Python source, for the identity of what a run executes. Imports nothing of what it hashes.

The hash is that of the syntax tree: comments, docstrings and formatting do not count. It covers the module that defines
a class or function and, transitively, the modules beside it that it imports: those of its package, or for a module
without a package those in its folder. Of kdbench itself it covers the files of methods only; the rest is recorded as
the version of kdbench.
"""

import ast
import hashlib
import json
import sys
from functools import lru_cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from kdbench.config.rules import nearest
from kdbench.errors import UserError

_INSTALLED = {"site-packages", "dist-packages"}
# What all methods share is part of kdbench, not of a method.
_SHARED = ("kdbench.methods.machinery", "kdbench.methods.method", "kdbench.methods.create")


def source_hash(target: str) -> str:
    """Hash of the source behind a dotted path.

    Args:
        target: `package.module.Class`.

    Returns:
        16 hex digits.

    Raises:
        UserError: there is no such module, it does not define the name, cannot be parsed, or imports what is not there.
    """
    module = module_of(target)
    _check_defined(target, module)
    trees = _collected(module)
    for name in trees:
        if not name.startswith("kdbench."):
            _check_imports(name)
    return hashlib.sha256(json.dumps(sorted(trees.items())).encode()).hexdigest()[:16]


def module_of(target: str) -> str:
    """The longest leading part of a dotted path that is a module.

    Raises:
        UserError: there is none.
    """
    parts = target.split(".")
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        if _spec(name):
            return name
    raise UserError(f"{target} cannot be found: no module {parts[0]}; put its folder on PYTHONPATH or install it")


def _check_defined(target: str, module: str) -> None:
    """Refuse a name that its module neither defines nor imports."""
    name = target.removeprefix(f"{module}.").partition(".")[0]
    file = _file(module)
    if file is None:
        raise UserError(f"{target} cannot be found: {module} has no Python source")
    names = _names(_parsed(file, file.stat().st_mtime_ns))
    if name not in names and "*" not in names:
        raise UserError(f"{target} cannot be found: {file} does not define {name}{nearest(name, names)}")


def _names(tree: ast.Module) -> set[str]:
    """Names that a module may define or import, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def _check_imports(module: str) -> None:
    """Refuse an import at the top of a module that cannot succeed: of no module, or of a name that ours do not have."""
    file = _file(module)
    assert file is not None
    for node in _parsed(file, file.stat().st_mtime_ns).body:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for name in _imports(ast.Module([node], []), module, file.name == "__init__.py"):
            base, _, last = name.rpartition(".")
            if _exists(name) or (isinstance(node, ast.ImportFrom) and _may_define(base, last)):
                continue
            missing = name if not base or not _exists(base) else f"name {last} in {base}"
            what = missing if missing.startswith("name ") else f"module {missing}"
            raise UserError(f"{file}:{node.lineno}: there is no {what}")


def _exists(module: str) -> bool:
    """Whether a module can be there; an installed package may make modules of its own while it is imported."""
    return _is_installed(module) or _spec(module) is not None


def _is_installed(module: str) -> bool:
    """Whether a module belongs to Python or to an installed package other than kdbench."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return True
    spec = None if top == "kdbench" else _spec(top)
    places = [spec.origin or "", *(spec.submodule_search_locations or [])] if spec else []
    return any(_INSTALLED & set(Path(place).parts) for place in places)


def _may_define(module: str, name: str) -> bool:
    """Whether a module may have a name: one that is installed may; kdbench's and the user's own are read."""
    file = _file(module)
    if file is None or _is_installed(module):
        return _exists(module)
    names = _names(_parsed(file, file.stat().st_mtime_ns))
    return bool({name, "*", "__getattr__"} & names) or name == "*"


def _collected(module: str) -> dict[str, str]:
    """Canonical source, by module, of a module and of those beside it that it imports, however indirectly."""
    trees: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = _file(name)
        if name in trees or file is None:
            continue
        changed = file.stat().st_mtime_ns
        trees[name] = _canonical(file, changed)
        imported = _imports(_parsed(file, changed), name, file.name == "__init__.py")
        waiting += [other for other in imported if _beside(other, module)]
    return trees


def _beside(other: str, module: str) -> bool:
    """Whether a module belongs to the same code as the one that a hash is for."""
    if any(other == shared or other.startswith(f"{shared}.") for shared in _SHARED):
        return False
    top = "kdbench.methods" if module.startswith("kdbench.") else module.partition(".")[0]
    if other == top or other.startswith(f"{top}."):
        return True
    if "." in module or module.startswith("kdbench."):
        return False
    files = _file(module), _file(other.partition(".")[0])
    folders = [file.parent for file in files if file]
    return len(folders) == 2 and folders[0] == folders[1] and folders[0].name not in _INSTALLED


def _imports(tree: ast.Module, module: str, is_package: bool) -> list[str]:
    """Dotted names that a module imports, anywhere in it; of `from a import b` both `a` and `a.b`."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                around = module.split(".") if is_package else module.split(".")[:-1]
                around = around[: len(around) - (node.level - 1)]
                base = ".".join([*around, *([base] if base else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


def _file(module: str) -> Path | None:
    """The source file of a module; None where the name is not a module, or a package without an `__init__.py`."""
    spec = _spec(module)
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _spec(module: str) -> ModuleSpec | None:
    """Where a module is, found without importing its parents."""
    path: Any = None
    spec = None
    for end in range(1, module.count(".") + 2):
        name = ".".join(module.split(".")[:end])
        specs = (finder.find_spec(name, path, None) for finder in sys.meta_path)
        spec = next(filter(None, specs), None)
        if spec is None:
            return None
        path = spec.submodule_search_locations or []
    return spec


@lru_cache
def _parsed(file: Path, _changed: int) -> ast.Module:
    try:
        return ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        place = f"{file}:{line}" if line else str(file)
        raise UserError(f"{place} is not valid Python: {getattr(error, 'msg', error)}") from error


@lru_cache
def _canonical(file: Path, changed: int) -> str:
    return json.dumps(_node(_parsed(file, changed)), separators=(",", ":"))


def _node(value: Any) -> Any:
    """A syntax tree as plain lists, the same for all versions of Python: fields that are empty are left out."""
    if isinstance(value, ast.AST):
        fields = [
            [name, _node(_without_docstring(value, name, child))]
            for name, child in ast.iter_fields(value)
            if child not in (None, []) and name not in ("ctx", "type_comment", "kind")
        ]
        return [type(value).__name__, *fields]
    if isinstance(value, list):
        return [_node(item) for item in value]
    return repr(value)


def _without_docstring(node: ast.AST, field: str, child: Any) -> Any:
    documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    if documented and field == "body" and child:
        first = child[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            return child[1:]
    return child
