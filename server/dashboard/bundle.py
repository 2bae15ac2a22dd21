"""Bundler of the dashboard: its modules as one script, its style sheets as one.

There is no build step: the modules are bundled at the first request, each in its own function, in
the order of their imports. Only these forms are supported, each at the beginning of a line:

    import { a, b as c } from "./x.js";    import * as x from "./x.js";    import x from "./x.js";
    export function f() …    export const c = …    export class C …    export { a as default };

Anything else is a WebBundleError, which a test would show.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from posixpath import dirname, join, normpath

_IMPORT = re.compile(r'^import\s+([^;"]+?)\s+from\s+"(\.[^"]+)";[ \t]*$', re.MULTILINE)
_EXPORT = re.compile(r"^export\s+((?:async\s+)?function\*?|const|class)\s+(\w+)", re.MULTILINE)
_EXPORT_LIST = re.compile(r"^export\s+\{([^}]*)\};[ \t]*$", re.MULTILINE)
_LEFT_OVER = re.compile(r"^(?:import|export)\b.*$", re.MULTILINE)

Read = Callable[[str], str]


class WebBundleError(Exception):
    """A module uses an unsupported form of import or export, or the imports are circular."""


def script(entry: str, read: Read) -> str:
    """Bundle `entry` and everything it imports. read(name): a module's text by its path below the
    page."""
    order: list[str] = []
    _visit(entry, read, order, ())
    parts = [_wrapped(name, read(name)) for name in order]
    return '"use strict";\n(() => {\nconst modules = {};\n' + "\n".join(parts) + "\n})();\n"


def modules(entry: str, read: Read) -> list[str]:
    """Names of the modules in the order in which they must run."""
    order: list[str] = []
    _visit(entry, read, order, ())
    return order


def styles(names: list[str], read: Read) -> str:
    return "\n".join(f"/* {name} */\n{read(name)}" for name in names)


def _visit(name: str, read: Read, order: list[str], above: tuple[str, ...]) -> None:
    if name in above:
        raise WebBundleError(f"modules import each other: {' -> '.join([*above, name])}")
    if name in order:
        return
    for _, target in _IMPORT.findall(read(name)):
        _visit(_resolved(name, target), read, order, (*above, name))
    order.append(name)


def _resolved(name: str, target: str) -> str:
    return normpath(join(dirname(name), target))


def _wrapped(name: str, text: str) -> str:
    exported: list[str] = []

    def imported(found: re.Match[str]) -> str:
        return _binding(found[1], _resolved(name, found[2]))

    def declared(found: re.Match[str]) -> str:
        if _is_in_comment(found.string, found.start()):
            return found[0]
        exported.append(found[2])
        return f"{found[1]} {found[2]}"

    def listed(found: re.Match[str]) -> str:
        for one in filter(None, (part.strip() for part in found[1].split(","))):
            local, _, alias = one.partition(" as ")
            exported.append(f"{alias.strip()}: {local.strip()}" if alias else local)
        return ""

    text = _IMPORT.sub(imported, text)
    text = _EXPORT.sub(declared, text)
    text = _EXPORT_LIST.sub(listed, text)
    left = next((m for m in _LEFT_OVER.finditer(text) if not _is_in_comment(text, m.start())), None)
    if left:
        raise WebBundleError(f"{name}: cannot bundle {left[0][:80]!r}")
    returned = f"return {{ {', '.join(exported)} }};"
    return f'modules["{name}"] = (() => {{\n{text}\n{returned}\n}})();'


def _is_in_comment(text: str, at: int) -> bool:
    return text.rfind("/*", 0, at) > text.rfind("*/", 0, at)


def _binding(clause: str, module: str) -> str:
    clause = " ".join(clause.split())
    if clause.startswith("{"):
        names = clause.strip("{} ").rstrip(",").replace(" as ", ": ")
        return f'const {{ {names} }} = modules["{module}"];'
    if clause.startswith("* as "):
        return f'const {clause.removeprefix("* as ")} = modules["{module}"];'
    return f'const {clause} = modules["{module}"].default;'
