"""Input data: what the columns of a log mean, and batches of it from files and frames."""

from __future__ import annotations

from downpour.data.files import Files
from downpour.data.frames import Frame
from downpour.data.schema import Dense, Feature, Label, Schema
from downpour.data.source import Source

__all__ = ["Dense", "Feature", "Files", "Frame", "Label", "Schema", "Source"]
