"""Language models small enough to make in milliseconds, and rows of token ids for them."""

import torch

from recis_lightning.ragged import Ragged

VOCABULARY, LONGEST = 60, 24
BERT = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": LONGEST,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": LONGEST,
}


def draw_rows(count: int, seed: int = 0, contents: int = 10_000) -> Ragged:
    """``count`` rows of 0 to 20 token ids, of at most ``contents`` contents."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 21, (min(count, contents),), generator=generator).tolist()
    rows = [torch.randint(VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    chosen = torch.randint(len(rows), (count,), generator=generator).tolist() if contents < count else range(count)
    return Ragged.from_lists([rows[index] for index in chosen])
