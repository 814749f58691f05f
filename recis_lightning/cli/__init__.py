"""The command `recis`.

recis fit | validate | test | predict --config recipe.yaml     train and evaluate what a recipe says
recis data synth OUT                                           make data
recis data manifest DIR | recis data verify DIR                write checksums, and hold the files against them
recis data hold-out DATA --column C --out OUT                  part rows by the values of a column
recis text train-tokenizer DATA --column C --out FILE          train a tokenizer from texts
recis text export-vectors CKPT --data DATA ... --out FILE      write the vectors of items
recis tables inspect CKPT                                      what the tables of a checkpoint hold
recis tables export CKPT --table T --out FILE | FOLDER         a table as safetensors, Parquet or ORC
recis tables import CKPT --table T --from FILE --out NEW.ckpt  and back; RecIS's checkpoints too
recis plan --config recipe.yaml --devices N --memory 80GB      rows, memory and traffic of a rank, before anything runs
recis checkpoint inspect | verify | reshard CKPT               what a checkpoint holds, whether it is whole, other files
recis features plan | fit --config recipe.yaml                 show how transforms run, and fit them to data
recis data inspect DIR [--out recipe.yaml]                     what files hold, and a recipe to start from
recis data stats DIR [--html FILE]                             quantiles, commonest values, plots
recis data convert FILE ... --out FOLDER                       CSV, JSON lines, Parquet, public data sets into ORC
recis data convert-fg FG.json [MC.json]                        the schema of RecIS's feature configuration
recis export --config recipe.yaml --ckpt x.ckpt --out FOLDER   files that score without this package
recis doctor                                                   what is installed, and which kernels run

Mistakes of the user end in a few lines and status 2; RECIS_TRACEBACK=1 shows where they were found.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from recis_lightning import __version__
from recis_lightning.cli.explain import UsageError
from recis_lightning.errors import UserError
from recis_lightning.schema import did_you_mean

STAGES = {
    "fit": "train the model of a recipe",
    "validate": "evaluate a checkpoint on the validation data",
    "test": "evaluate a checkpoint on the test data",
    "predict": "score data with a checkpoint",
}
COMMANDS = STAGES | {
    "data": "make, inspect, convert and split data, read RecIS's feature configuration (recis data --help)",
    "text": "train a tokenizer (train-tokenizer), and write item vectors (export-vectors)",
    "tables": "look into tables (inspect), write and read their rows (export, import)",
    "plan": "reckon rows, memory and traffic of each rank before anything runs",
    "checkpoint": "look into a checkpoint (inspect), check its files (verify), rewrite them (reshard)",
    "features": "show the plan of a recipe's transforms, or fit them to data (recis features plan | fit)",
    "export": "write a checkpoint as files that score without this package",
    "doctor": "show versions, devices, and which kernels run and why",
}

DATA_COMMANDS = {  # the module of data.commands that adds the arguments, its function that runs, and what it does
    "synth": ("synth", "run", "a click log that knows its truth, or data for any recipe's schema"),
    "hold-out": ("hold_out", "run", "part rows by the values of a column, e.g. items never trained on"),
    "manifest": ("checksums", "run_manifest", "write checksums of all stripes, which training then checks"),
    "verify": ("checksums", "run_verify", "read all files and hold them against their checksums"),
    "inspect": ("inspect", "run", "what files hold, and a recipe to start from"),
    "stats": ("stats", "run", "quantiles and commonest values of columns, a page with plots"),
    "convert": ("convert", "run", "CSV, TSV, JSON lines, Parquet, Criteo, MovieLens, Amazon into ORC"),
    "convert-fg": ("convert_fg", "run", "the schema of RecIS's feature configuration (fg.json, mc.json)"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; 0 where it went well, 2 for a mistake of the user, 130 where it was interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    find_modules_of_folder()
    try:
        return dispatch(arguments[0], arguments[1:])
    except SystemExit as stop:
        # Lightning turns Ctrl-C into status 1; a shell expects 130.
        interrupted = isinstance(stop.__context__, KeyboardInterrupt)
        return 130 if interrupted else stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not is_mistake(error) or os.environ.get("RECIS_TRACEBACK") == "1":
            raise
        print(f"recis: {error}", file=sys.stderr)
        return 2


def find_modules_of_folder() -> None:
    """Let recipes name classes of modules in the folder where `recis` runs, as `python -m` would.

    Its absolute path: the entry "" that some programs have means another folder while a recipe is parsed.
    """
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)


def usage() -> str:
    lines = [f"  {name:<12}{text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: recis COMMAND ...", "", *lines, "", "recis COMMAND --help tells more."])


def dispatch(command: str, arguments: list[str]) -> int:
    """Run one command; what it needs is imported only now, for Lightning alone takes seconds."""
    if command in STAGES:
        run = importlib.import_module("recis_lightning.cli.run").run
        run(command, arguments)
        return 0
    if command == "data":
        return run_data(arguments)
    if command not in COMMANDS:
        print(f"recis: there is no command '{command}'{did_you_mean(command, COMMANDS)}", file=sys.stderr)
        return 2
    status: int = importlib.import_module(f"recis_lightning.cli.{command}").run(arguments)
    return status


def run_data(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("recis data", description="Make data, split them, and describe those there are.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module_name, function, text) in DATA_COMMANDS.items():
        module = importlib.import_module(f"recis_lightning.data.commands.{module_name}")
        command = commands.add_parser(name, help=text)
        module.add_arguments(command)
        command.set_defaults(run=getattr(module, function))
    args = parser.parse_args(arguments)
    try:
        status: int = args.run(args)
    except OSError as error:
        raise UsageError(str(error)) from error
    return status


def is_mistake(error: Exception) -> bool:
    """Whether an error tells the user all there is to know: what is wrong in a recipe, in data, or in a checkpoint."""
    if isinstance(error, UserError):
        return True
    # Lightning's own word for what is wrong in a trainer's options; where it is not imported, nobody has raised it.
    exceptions = sys.modules.get("lightning.fabric.utilities.exceptions")
    return exceptions is not None and isinstance(error, exceptions.MisconfigurationException)
