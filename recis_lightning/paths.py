"""Paths as recipes write them: `${RECIS_DATA}/train`, `~/models`."""

import os
import re


def expand_path(path: str) -> str:
    """Put environment variables and ~ in: `${RECIS_DATA}/train` -> `data/train`; ValueError where one is not set."""

    def value_of(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ValueError(
                f"path '{path}' needs the environment variable {name}, which is not set; export {name}=<folder>, "
                "or write the folder into the path"
            )
        return os.environ[name]

    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", value_of, path))
