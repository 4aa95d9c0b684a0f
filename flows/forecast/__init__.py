"""Estimate what a build takes, from earlier builds or from a probe."""
