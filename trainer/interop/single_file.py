"""Assembles one Python file from a module and the traind modules that it imports by name.

For code that must run without traind installed, so that no second copy must be maintained.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

PACKAGE = "trainer"


def assemble(module: str) -> str:
    """The source of `module`, preceded by that of each traind module that it imports from.

    Raises ValueError if one file cannot be equivalent: a traind module imported as a whole or under
    another name, a top-level name defined twice.
    """
    parts: dict[str, _Part] = {}
    _collect(module, parts)
    defined: dict[str, str] = {}
    for name, part in parts.items():
        for own in part.defined:
            if own in defined:
                raise ValueError(f"{defined[own]} and {name} both define {own}")
            defined[own] = name
    head = [f'"""{parts[module].docstring}"""', "from __future__ import annotations"]
    bodies = [part.text if name == module else _titled(name, part) for name, part in parts.items()]
    return "\n\n".join([*head, _imports(list(parts.values())), "\n\n\n".join(bodies)]) + "\n"


class _Part:
    """A module's own text, without its docstring and imports."""

    def __init__(self, module: str) -> None:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise ValueError(f"{module} has no source")
        source = Path(spec.origin).read_text(encoding="utf-8")
        tree, lines = ast.parse(source), source.splitlines()
        self.docstring = ast.get_docstring(tree, clean=False) or ""
        self.own: list[str] = []  # traind modules that it needs
        self.whole: set[str] = set()  # other modules, as `import` names them
        self.names: set[tuple[str, str]] = set()  # (other module, name)
        self.defined: list[str] = []
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._take_import(node, module)
            elif not (node is tree.body[0] and self.docstring):
                self.defined += _names(node)
                continue
            for line in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[line] = ""
        self.text = "\n".join(lines).strip("\n")

    def _take_import(self, node: ast.Import | ast.ImportFrom, module: str) -> None:
        source = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        spelled = [ast.unparse(alias) for alias in node.names]
        if source.startswith(f"{PACKAGE}."):
            if any(alias.asname for alias in node.names) or _is_package(source):
                raise ValueError(f"{module} does not import plain names from {source}")
            self.own.append(source)
        elif any(name.split(".")[0] == PACKAGE for name in (source, *spelled)):
            raise ValueError(f"{module} imports a whole module of {PACKAGE}")
        elif not source:
            self.whole |= set(spelled)
        elif source != "__future__":
            self.names |= {(source, name) for name in spelled}


def _collect(module: str, parts: dict[str, _Part]) -> None:
    """Collect modules depth first: dependencies come before the modules that need them."""
    part = _Part(module)
    for needed in part.own:
        if needed not in parts:
            _collect(needed, parts)
    parts[module] = part


def _is_package(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.submodule_search_locations is not None


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _titled(name: str, part: _Part) -> str:
    """The text, preceded by its origin and its docstring as comments."""
    words = [f"--- {name.replace('.', '/')}.py", "", *part.docstring.splitlines()]
    return "\n".join([*(f"# {line}".rstrip() for line in words), "", part.text])


def _imports(parts: list[_Part]) -> str:
    """The imports of all parts, each once: the standard library's, then others'."""
    names: dict[str, set[str]] = {}
    for source, name in set[tuple[str, str]]().union(*(part.names for part in parts)):
        names.setdefault(source, set()).add(name)
    lines = {f"import {name}": name for part in parts for name in part.whole}
    lines |= {f"from {source} import {', '.join(sorted(n))}": source for source, n in names.items()}
    groups: dict[bool, list[str]] = {False: [], True: []}
    for line in sorted(lines, key=lambda line: (line.startswith("from"), line)):
        groups[lines[line].split(".")[0] in sys.stdlib_module_names].append(line)
    return "\n\n".join("\n".join(group) for group in (groups[True], groups[False]) if group)
