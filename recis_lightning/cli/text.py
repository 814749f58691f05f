"""`recis text`: tokenizers from a column, item vectors from a trained tower."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def run(arguments: Sequence[str]) -> int:
    """Do what the arguments ask for and print what was written; errors name what is wrong."""
    args = _parser().parse_args(arguments)
    if args.command == "train-tokenizer":
        return _train_tokenizer(args)
    return _export_vectors(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("recis text", description="What towers over text need, and give.")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    train = commands.add_parser("train-tokenizer", help="train a tokenizer from a column of texts")
    train.add_argument("data", metavar="DATA", nargs="+", help="ORC files, folders or globs")
    train.add_argument("--column", required=True, help="the column of texts")
    train.add_argument("--out", type=Path, required=True, help="tokenizer.json to write")
    train.add_argument("--vocab-size", type=int, default=8192, help="token ids at most (default %(default)s)")
    train.add_argument("--min-frequency", type=int, default=2, help="of pairs to be merged (default %(default)s)")
    train.add_argument("--max-texts", type=int, default=1_000_000, help="distinct texts read (default %(default)s)")
    export = commands.add_parser("export-vectors", help="write (id, vector) of each item to Parquet")
    export.add_argument("checkpoint", metavar="CKPT", help="a checkpoint of a model with the tower")
    export.add_argument("--data", nargs="+", required=True, help="ORC files that hold ids and texts")
    export.add_argument("--id", required=True, help="the column of ids")
    export.add_argument("--feature", required=True, help="the feature whose tower makes the vectors")
    export.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    return parser


def _train_tokenizer(args: argparse.Namespace) -> int:
    from recis_lightning.data.train_tokenizer import train_tokenizer

    trained = train_tokenizer(
        args.data,
        args.column,
        args.out,
        vocab_size=args.vocab_size,
        min_frequency=args.min_frequency,
        max_texts=args.max_texts,
    )
    print(
        f"{trained.path}: {trained.vocabulary} tokens from {trained.texts:,} distinct texts, which have "
        f"{trained.mean_length:.1f} token ids on average and {trained.longest} at most"
    )
    return 0


def _export_vectors(args: argparse.Namespace) -> int:
    from recis_lightning.training import RecModule
    from recis_lightning.training.item_vectors import export_vectors

    module = RecModule.load_from_checkpoint(args.checkpoint)
    exported = export_vectors(module, args.data, args.id, args.feature, args.out)
    print(f"{exported.path}: {exported.items:,} items, vectors of width {exported.dim}")
    if exported.ambiguous:
        print(f"{exported.ambiguous:,} of them have several texts in these data; the first one counts")
    return 0
