"""AdamW with CoCa's decay groups, Muon by choice for hidden matrices, and the learning-rate schedule."""

import math

import torch
from torch import nn

from grrcoca_cli.config import TrainingConfig

UNDECAYED = ("token_embedding", "positions", "cls", "queries", "logit_scale")
NOT_HIDDEN = ("patch_embedding", "head", "image_projection", "text_projection")


def make_optimizers(model: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov and Hutter, 2019) for all, or Muon (Jordan et al., 2024) for hidden matrices and AdamW beside.

    Norms, biases, embeddings and the temperature do not decay. Muon's updates are scaled to AdamW's size (Liu et al.,
    2025, eq. 4), so that both follow one learning rate.
    """
    hidden: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if not parameter.requires_grad:
            continue
        if parameter.dim() < 2 or any(part in UNDECAYED for part in parts):
            undecayed.append(parameter)
        elif config.optimizer == "muon" and not any(part in NOT_HIDDEN for part in parts):
            hidden.append(parameter)
        else:
            decayed.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)
    if not hidden:
        return [adamw]
    muon = torch.optim.Muon(
        hidden, lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, adamw]


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Rate of the step numbered ``step`` from 0: a linear warm-up, then half a cosine (Loshchilov and Hutter, 2017)."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * (1 + math.cos(math.pi * progress)) / 2
