"""What our own code may not do, as rules over its syntax, beside those of ruff and bandit.

A rule stands here if breaking it would let somebody else's bytes decide what this process does, and
if no line of ours has a reason to break it: there are no exceptions to write down.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# Readers that run what they read, and a module that forks behind our back and unpickles.
IMPORTS: Final = frozenset({
    "pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "yaml", "multiprocessing",
    "xmlrpc", "telnetlib", "ftplib", "imp", "code", "pty",
})  # fmt: skip
BUILTINS: Final = frozenset({"eval", "exec", "compile", "__import__", "breakpoint"})
# (module, function): a shell, a race for a name, a check that is turned off, archives unpacked
# wherever they say.
CALLS: Final = frozenset({
    ("os", "system"), ("os", "popen"), ("subprocess", "getoutput"),
    ("subprocess", "getstatusoutput"), ("tempfile", "mktemp"),
    ("ssl", "_create_unverified_context"), ("shutil", "unpack_archive"), ("hashlib", "md5"),
    ("hashlib", "sha1"),
})  # fmt: skip
METHODS: Final = frozenset({"extractall"})
# Keywords that may not have this value.
KEYWORDS: Final = {"shell": True, "verify": False, "check_hostname": False}


def breaches(source: str) -> Iterator[tuple[int, str]]:
    """Line and rule of everything that breaks one."""
    for node in ast.walk(ast.parse(source)):
        for rule in _of(node):
            yield getattr(node, "lineno", 0), rule


def _of(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (f"import {n.name}" for n in names if _top(n.name) in IMPORTS)
        case ast.ImportFrom(module=str(module), level=0, names=names):
            if _top(module) in IMPORTS:
                yield f"import {_top(module)}"
            yield from (f"{module}.{n.name}" for n in names if (module, n.name) in CALLS)
        case ast.Call(func=ast.Name(id=name)) if name in BUILTINS:
            yield name
        case ast.Attribute(value=ast.Name(id=module), attr=name) if (module, name) in CALLS:
            yield f"{module}.{name}"
        case ast.Attribute(attr=name) if name in METHODS:
            yield name
        case ast.keyword(arg=str(name), value=ast.Constant(value=value)):
            if name in KEYWORDS and value is KEYWORDS[name]:
                yield f"{name}={value}"
        case _:
            pass


def _top(module: str) -> str:
    return module.partition(".")[0]


def breaches_below(*folders: Path) -> list[str]:
    """Every breach in the Python files below these folders."""
    return [
        f"{path}:{line}: {rule}"
        for folder in folders
        for path in sorted(folder.rglob("*.py"))
        for line, rule in breaches(path.read_text(encoding="utf-8"))
    ]
