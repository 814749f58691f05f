"""What jsonargparse says about a recipe, in the few words that matter.

explain('Parser key "data.batch_size": Expected a <class 'int'>. Got value: many')
-> "data.batch_size is 'many', need int"
"""

import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable, Sequence

from recis_lightning.errors import UserError

# Where the classes live that a recipe may name without their module.
CLASSES = {
    "network": "recis_lightning.models",
    "dense_optimizer": "torch.optim",
    "lr_scheduler": "torch.optim.lr_scheduler",
    "callbacks": "lightning.pytorch.callbacks",
    "logger": "lightning.pytorch.loggers",
    "strategy": "lightning.pytorch.strategies",
    "profiler": "lightning.pytorch.profilers",
}


class UsageError(UserError):
    """A mistake in a recipe or on the command line, told in a few lines."""


def explain(message: str, options: Sequence[str] = ()) -> str:
    """Say which option is wrong, what was found, and what was probably meant; ``options`` are those of the command."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    where = ".".join(key for key in keys if key)
    for rule in (_unknown_option, _missing, _unknown_init_arg, _unknown_class, _wrong_type):
        found = rule(message, where, options)
        if found:
            return found
    return _without_noise(message)


def told_by_class(message: str) -> str | None:
    """What a class says of its own options, from the list of all that an entry of a recipe could have been.

    None where the message is no such list.
    """
    if "any of the Union subtypes" not in message:
        return None
    told = re.findall(r"^ *- (?!Expected an? )(.+)$", message, re.MULTILINE)
    return told[-1] if told else None


def _unknown_option(message: str, where: str, options: Sequence[str]) -> str | None:
    match = re.search(r"unrecognized arguments: --([^=\s]+)|does not accept option '([^']+)'", message)
    if match is None:
        return None
    name = match[1] or match[2]
    return f"there is no option {name}{_did_you_mean(name, options)}"


def _missing(message: str, where: str, options: Sequence[str]) -> str | None:
    match = re.search(r"arguments are required: (.+)", message)
    if match is None:
        return None
    names = [re.sub(r"^(fit|validate|test|predict)\.", "", name) for name in match[1].split(", ")]
    if len(names) == 1:
        return f"{names[0]} is missing; write it into the recipe"
    return f"{' and '.join(names)} are missing; write them into the recipe"


def _unknown_init_arg(message: str, where: str, options: Sequence[str]) -> str | None:
    match = re.search(r"Option '([^']+)' is not accepted", message)
    if match is None:
        return None
    classes = re.findall(r"class_path[=' ]+([\w.]+)'", message)
    known = _parameters(classes[0]) if classes else []
    if match[1] in ("class_path", "init_args") or not classes:
        return f"{where}: '{match[1]}' is not accepted here; write class_path and init_args"
    return f"{where}: {classes[0].rpartition('.')[2]} has no option '{match[1]}'{_did_you_mean(match[1], known)}"


def _unknown_class(message: str, where: str, options: Sequence[str]) -> str | None:
    match = re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message)
    if match is not None:
        return f"{where}: {match[1]} has no '{match[2]}'{_did_you_mean(match[2], _public_classes(match[1]))}"
    match = re.search(r"Expected '([\w.]+)' to be a subclass of <class '([\w.]+)'>", message)
    if match is not None:
        return f"{where}: {match[1]} is no {match[2]}"
    match = re.search(r"Expected a dot import path string: (\S+)|No module named '([\w.]+)'", message)
    if match is None:
        return None
    name = match[1] or match[2]
    module = CLASSES.get(where.rpartition(".")[2])
    hint = _did_you_mean(name, _public_classes(module)) if module else ""
    return f"{where}: there is no class '{name}'{hint}"


def _wrong_type(message: str, where: str, options: Sequence[str]) -> str | None:
    wanted = [name.rpartition(".")[2] for name in re.findall(r"Expected an? <class '([\w.]+)'>", message)]
    found = re.search(r"Got value: (.+?)(?:\. Got value: Namespace|$)", message) or re.search(
        r"Given value: (.+)", message
    )
    if not wanted or found is None or not where:
        return None
    names = ["none" if name == "NoneType" else name for name in dict.fromkeys(wanted)]
    return f"{where} is '{found[1]}', need {' or '.join(names)}"


def _without_noise(message: str) -> str:
    """The message without dumps of what was parsed, and without types' full names."""
    message = re.sub(r"\.? ?Got value: Namespace\(.*", "", message, flags=re.DOTALL)
    message = re.sub(r"Parser key \"([^\"]+)\":\s*", r"\1: ", message)
    return re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", message).strip()


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    """The closest of the known names, by their last parts first: max_epochz -> trainer.max_epochs."""
    known = sorted(set(known))
    last = {name.rpartition(".")[2]: name for name in known}
    close = difflib.get_close_matches(word, known, n=1) or [
        last[name] for name in difflib.get_close_matches(word.rpartition(".")[2], last, n=1)
    ]
    return f"; did you mean {close[0]}?" if close else ""


def _public_classes(module: str) -> list[str]:
    try:
        members = vars(importlib.import_module(module))
    except ImportError:
        return []
    return [name for name, value in members.items() if inspect.isclass(value) and not name.startswith("_")]


def _parameters(class_path: str) -> list[str]:
    """Names that a class may be given, those of the classes it inherits from included."""
    try:
        found = pkgutil.resolve_name(class_path)
    except (ImportError, AttributeError, ValueError):
        return []
    owners = inspect.getmro(found) if inspect.isclass(found) else (found,)
    names = [name for owner in owners for name in inspect.signature(owner).parameters if owner is not object]
    return [name for name in names if name not in ("args", "kwargs", "schema", "params")]
