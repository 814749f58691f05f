"""How the rows of a group of tables lie in memory: what all ops on rows agree on.

Row r of a group is weight[r] (R x D), state[r] (R x W, the optimizer's), and the record meta[r] (R x 4, int64) with the
columns below. A granule is 64 rows that follow each other and belong to one table: granule_table[r // 64] (int32) is
that table's number in its group, or UNTRAINED where the rows are no table's, such as the zeros that unknown ids read.
"""

GRANULE = 64
UNTRAINED = -1

# Columns of a record.
STAMP = 0  # scratch of group_by_row
LAST_STEP = 1  # the last training step that looked the row up; NOBODYS for a row whose id was erased
COUNT = 2  # how often training looked it up
ID = 3  # its id; of an erased row the one erased before it
RECORD = 4  # columns

NOBODYS = -1
