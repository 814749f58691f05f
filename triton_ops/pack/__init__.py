"""From Arrow's column buffers to packed batches: null fill by the bitmap, row permutation, ragged gather."""
