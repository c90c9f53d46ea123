"""Bounds that panels draw as lines. deploy/prometheus/rules.yml has the same numbers, and a test compares them.

They suit a small model on a CPU. A larger model, or a network in between, needs others.
"""

# A comparison within SATISFIED_S feels instant; within TOLERATED_S, four times that, it is acceptable (Apdex).
# Both must be bounds of buckets, so that they can be counted.
SATISFIED_S, TOLERATED_S = 0.05, 0.2
APDEX = 0.85

SHED_SHARE = 0.01
FAILED_SHARE = 0.01
LOOP_LAG_S = 0.1
MEMORY_GROWTH_BYTES_PER_HOUR = 100e6

# Log-odds that the first position adds, at the median, and how far that may move in a day.
FIRST_POSITION, FIRST_POSITION_MOVE = 2.0, 0.25
TRUNCATED_SHARE = 0.05
DISAGREEMENT_SHARE = 0.3
