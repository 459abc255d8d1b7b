"""`python -m guest_sdk.build DIR --out FILE.wasm [--json] [--work DIR] [--twice]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from executor.errors import ExecutorError
from guest_sdk.build.core import SCHEMA, Built, build, build_twice
from guest_sdk.build.toolchain import DETAIL_MAX


def main(arguments: Sequence[str]) -> int:
    """Build one task; the exit status is the error code's, 0 when the file is there."""
    options = _parser().parse_args(arguments)
    try:
        built = (build_twice if options.twice else build)(options.folder, options.work)
        _write(options.out, built.module)
    except ExecutorError as error:
        return _report(error, as_json=options.json)
    except OSError as error:  # a folder that cannot be read or written: the options are to mend
        text = str(error)[:DETAIL_MAX]
        return _report(ExecutorError("config.invalid", text), as_json=options.json)
    for note in built.notes:
        sys.stderr.write(f"{note}\n")
    facts = _facts(options.out, built)
    line = "{file}  {size} bytes  {toolchain}".format(**facts)
    sys.stdout.write(f"{json.dumps(facts) if options.json else line}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m guest_sdk.build", description="Build the task in DIR, unsigned."
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="the folder with task.toml")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the module")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--work", metavar="DIR", type=Path, help="keep toolchain caches here")
    parser.add_argument("--twice", action="store_true", help="build twice, elsewhere, and compare")
    return parser


def _write(target: Path, module: bytes) -> None:
    # By rename: nobody finds half a module.
    partial = target.with_name(f".{target.name}.partial")
    partial.write_bytes(module)
    partial.replace(target)


def _facts(target: Path, built: Built) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "file": str(target),
        "size": len(built.module),
        "language": built.recipe.language,
        "toolchain": built.toolchain,
        "task": built.recipe.name,
        "version": built.recipe.version,
        "sources": dict(built.sources),
    }


def _report(error: ExecutorError, *, as_json: bool) -> int:
    facts = {"code": error.code, "message": error.row.message, "detail": error.detail}
    if as_json:
        sys.stdout.write(f"{json.dumps({'schema': SCHEMA, 'error': facts})}\n")
    else:
        sys.stderr.write("error[{code}]: {message}\n\n{detail}\n".format(**facts))
    return error.row.exit


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
