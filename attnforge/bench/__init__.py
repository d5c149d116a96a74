"""`attnforge bench`: ours beside the peers, one run, interleaved, cold L2.

Only ratios within one run are trusted: absolute figures of one GPU move by about 5 % between runs. So every
implementation of a case is timed in turn, in shuffled rounds, and the report leads with ratios.
"""
