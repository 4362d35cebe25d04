"""The error of a rank that has lost another one; here without torch, for those who only tell it."""


class RankLost(Exception):
    """Another rank is gone, or takes too long: this one cannot go on."""
