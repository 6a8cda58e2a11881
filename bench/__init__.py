"""`make bench`: how fast the hot path is, beside yardsticks measured in the same run."""
