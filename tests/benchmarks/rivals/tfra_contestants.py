"""TensorFlow Recommenders Addons on a CPU, Adam on tables that grow: python tfra_contestants.py step | lookup WIDTH.

All features share one table (their ids differ), which is its fastest way, and one traced function is a step. Prints
JSON, times in milliseconds.
"""

import json
import os
import sys
import time
from itertools import pairwise

os.environ |= {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}  # before TensorFlow is imported

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tf_keras  # noqa: E402
from draws import (  # noqa: E402
    BATCH,
    FEATURES,
    LOOKUP_DIM,
    LOOKUP_IDS,
    TIMED,
    WARM_UP,
    draw_ids,
    draw_labels,
    draw_lookups,
    known,
)
from tensorflow_recommenders_addons import dynamic_embedding as de  # noqa: E402


def make_table(width: int):  # type: ignore[no-untyped-def]
    uniform = tf.random_uniform_initializer(-0.05, 0.05)
    return de.get_variable("rows", dim=width, initializer=uniform, devices=["/CPU:0"], init_size=1 << 22)


def measure(width: int) -> float:
    """The mean time of a step."""
    rows = de.shadow_ops.ShadowVariable(make_table(width), name="touched", trainable=True)
    dense = [tf_keras.layers.Dense(units, activation="relu") for units in (256, 64)]
    mlp = tf_keras.Sequential([*dense, tf_keras.layers.Dense(1)])
    mlp.build((None, FEATURES * width))
    optimizer = de.DynamicEmbeddingOptimizer(tf_keras.optimizers.legacy.Adam(1e-3))

    @tf.function(input_signature=[tf.TensorSpec([BATCH * FEATURES], tf.int64), tf.TensorSpec([BATCH], tf.float32)])
    def step(ids, labels):  # type: ignore[no-untyped-def]
        with tf.GradientTape() as tape:
            embedded = de.shadow_ops.embedding_lookup_unique(rows, ids, width)
            logits = tf.reshape(mlp(tf.reshape(embedded, [BATCH, FEATURES * width])), [BATCH])
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits))
        variables = [*mlp.trainable_variables, rows]
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    count = WARM_UP + TIMED
    batches = [
        (tf.constant(np.ascontiguousarray(ids.T).reshape(-1)), tf.constant(label))
        for (ids, _), label in zip(draw_ids(count), draw_labels(count), strict=True)
    ]
    for batch in batches[:WARM_UP]:
        step(*batch)
    times = [time.perf_counter()]
    for batch in batches[WARM_UP:]:
        step(*batch).numpy()
        times.append(time.perf_counter())
    return 1000 * sum(end - begin for begin, end in pairwise(times)) / TIMED


def measure_lookup() -> float:
    """The median time to look up the rows of a batch of ids that are there."""
    table, times = make_table(LOOKUP_DIM), []
    for begin in range(0, LOOKUP_IDS, 1 << 18):
        ids = known(np.arange(begin, min(begin + (1 << 18), LOOKUP_IDS)))
        table.upsert(tf.constant(ids), tf.zeros([len(ids), LOOKUP_DIM]))
    for ids in draw_lookups():
        wanted = tf.constant(ids)
        start = time.perf_counter()
        table.lookup(wanted).numpy()
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    print(json.dumps(measure_lookup() if sys.argv[1] == "lookup" else measure(int(sys.argv[2]))))
