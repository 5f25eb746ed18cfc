"""Captions in, scores out. Knows no model."""

from grrcoca_cli.evaluation.inputs import align, read_columns, read_predictions, read_references
from grrcoca_cli.evaluation.metrics import Missing, Scores, score

__all__ = ["Missing", "Scores", "align", "read_columns", "read_predictions", "read_references", "score"]
