"""Weights and configs of other programs, both ways."""
