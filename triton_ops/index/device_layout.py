"""What the kernels of a GPU's index and the host that launches them agree on: kernels.py says what it means."""

EMPTY = -(2**63)
"""The key of a slot that none has claimed, and the row of a slot that has none."""
SPECIALS = 3  # EMPTY and two above it are no keys
SLOTS = 4  # of a bucket

# Columns of `tables`: addresses of the table's places, of held, of its stack of erased rows and of its granules;
# 63 - the bits that pick an entry; how many rows its granules have.
PLACES, HELD, STACK, GRANULES, SHIFT, SUPPLY = range(6)
TABLE_COLUMNS = 8

# Columns of `counters`: ids; erased rows on the stack; rows taken of the granules; ids that got no row.
COUNT, FREE, TAKEN, LOST = range(4)
COUNTER_COLUMNS = 4

# Rows of `runs`: the first block of ids, the first id, the id behind the last, the table, the table's first block.
FIRST_BLOCK, BEGIN, END, TABLE, TABLE_BLOCK = range(5)
RUN_ROWS = 5

# Columns of `jobs`: where the old segment is and how many slots it has; the bit of the mixed id that says which of two
# new ones is an id's; address, slots - 1 and number of each.
OLD, OLD_SLOTS, BIT, NEW = range(4)
JOB_COLUMNS = 9

# What `find` lists.
NOTHING, MISSES, HITS = range(3)
