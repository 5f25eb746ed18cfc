"""AdamW with CoCa's decay groups, and the learning-rate schedule."""

import math

import torch
from torch import nn

from grrcoca_cli.config import TrainingConfig

UNDECAYED = ("token_embedding", "positions", "cls", "queries", "logit_scale")


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019); norms, biases, embeddings and the temperature do not decay."""
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.dim() < 2 or any(part in UNDECAYED for part in name.split("."))
            (undecayed if plain else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Rate of the step numbered ``step`` from 0: a linear warm-up, then half a cosine (Loshchilov and Hutter, 2017)."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * (1 + math.cos(math.pi * progress)) / 2
