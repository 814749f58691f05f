"""`recis data convert-fg`: RecIS's feature configuration as the schema of a recipe.

recis data convert-fg fg.json mc.json --label click --out schema.yaml
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from recis_lightning.data.convert.feature_config import FgError, convert_fg


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("fg", type=Path, metavar="FG.json", help="RecIS's feature configuration")
    parser.add_argument("mc", type=Path, nargs="?", metavar="MC.json", help="which of its features a model takes")
    parser.add_argument(
        "--label", action="append", default=[], metavar="COLUMN", help="a column to predict; repeatable"
    )
    parser.add_argument("--already-hashed", action="store_true", help="the files hold hashes in the place of strings")
    parser.add_argument("--out", type=Path, metavar="YAML", help="where to write the schema (default: standard output)")


def run(args: argparse.Namespace) -> int:
    """Write the schema, with what could not be carried over as comments above it and on the standard error."""
    fg, mc = _read(args.fg), None if args.mc is None else _read(args.mc)
    converted = convert_fg(fg, mc, labels=args.label, already_hashed=args.already_hashed)
    comments = "".join(f"# {note}\n" for note in converted.notes)
    text = f"{comments}{yaml.dump(converted.settings, Dumper=_Dumper, sort_keys=False, width=120)}"
    if args.out is None:
        print(text, end="")
    else:
        args.out.write_text(text)
    counts = ", ".join(f"{len(items)} {name}" for name, items in converted.settings.items())
    print(f"{counts}; to look at ({len(converted.notes)}):", file=sys.stderr)
    for note in converted.notes:
        print(f"  - {note}", file=sys.stderr)
    return 0


class _Dumper(yaml.SafeDumper):
    """Writes equal parts out each time: anchors are for people to set."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise FgError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise FgError(f"{path} is no JSON: {error}") from error
