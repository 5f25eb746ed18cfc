"""GRR-CoCa: train, run and judge contrastive captioners on radiology pictures."""

__version__ = "0.1.0"
