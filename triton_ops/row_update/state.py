"""What each kind of optimizer keeps for a row, and where in the row's state."""


def state_slices(kind: str, dim: int) -> dict[str, slice]:
    """The columns of a row's state by name: state_slices("adam", 2) -> {"exp_avg": 0:2, "exp_avg_sq": 2:4}.

    Raises ValueError for an unknown kind.
    """
    slices: dict[str, dict[str, slice]] = {
        "sgd": {},
        "adagrad": {"sum": slice(0, dim)},
        "rowwise_adagrad": {"sum": slice(0, 1)},
        "adam": {"exp_avg": slice(0, dim), "exp_avg_sq": slice(dim, 2 * dim)},
        "adamw": {"exp_avg": slice(0, dim), "exp_avg_sq": slice(dim, 2 * dim)},
    }
    if kind not in slices:
        raise ValueError(f"there is no optimizer kind '{kind}'; there are: {', '.join(slices)}")
    return slices[kind]
