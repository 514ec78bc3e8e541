"""Looks for samples that are scored among the rows that are trained on, and sets those rows aside where asked to."""

from __future__ import annotations
