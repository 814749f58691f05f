"""What each rule keeps for a row, and where in the row's state."""


def state_slices(rule: str, dim: int) -> dict[str, slice]:
    """The columns of a row's state by name: state_slices("adam", 2) -> {"exp_avg": 0:2, "exp_avg_sq": 2:4}.

    Rule frozen has none. Raises ValueError for an unknown rule.
    """
    moments = {"exp_avg": slice(0, dim), "exp_avg_sq": slice(dim, 2 * dim)}
    slices: dict[str, dict[str, slice]] = {
        "frozen": {},
        "sgd": {},
        "momentum": {"momentum_buffer": slice(0, dim)},
        "adagrad": {"sum": slice(0, dim)},
        "rowwise_adagrad": {"sum": slice(0, 1)},
        "adam": moments,
        "adam_per_row": moments | {"step": slice(2 * dim, 2 * dim + 1)},
        "ftrl": {"sum": slice(0, dim), "linear": slice(dim, 2 * dim)},
    }
    if rule not in slices:
        raise ValueError(f"there is no rule '{rule}'; there are: {', '.join(slices)}")
    return slices[rule]
