"""How the sampling kernels are cut into programs, reasoned for an H200 (132 multiprocessors)."""

WEIGHING_PROGRAMS, PICKING_PROGRAMS = 6400, 1056
"""About 48 and 8 per multiprocessor. A program that weighs costs as much before its first chunk as for one, so it takes
three at 256 rows; more would leave a longer last wave. One that picks reads little, and mostly nothing."""

SEARCH_WARPS = 8
FEW_TILE = 512
MANY_TILE = 4096
"""Ids that the search holds or reads at a time, in one program of SEARCH_WARPS: the few dozen of an ordinary top-k are
two per thread, whose sums cost little more than the exchange between the warps. 4,096 are 16 per thread: as many as the
registers hold, and enough loads under way where a whole row is read again for every pivot."""
