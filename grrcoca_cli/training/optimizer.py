"""Optimisation: frozen parts, AdamW with CoCa's decay groups, Muon by choice, the learning-rate schedule."""

import math
from typing import Literal

import torch
from torch import nn

from grrcoca_cli.config import TrainingConfig
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.model.roles import role_of
from grrcoca_cli.training.muon import Float32Muon


def freeze(model: CoCa, what: Literal["none", "image"]) -> None:
    """Freeze the image encoder (``image``; its poolers still learn) or nothing (``none``); before `make_optimizers`.

    A frozen parameter gets no gradient and no decay, and its tower saves no activations. Patch dropout is not a
    property of weights: in training mode a frozen encoder still drops patches, as ``model.patch_dropout`` says.
    """
    for name, parameter in model.named_parameters():
        if role_of(name).part == what:
            parameter.requires_grad_(False)


def parameter_groups(
    model: nn.Module, config: TrainingConfig
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """The trainable parameters: hidden matrices for Muon (none under AdamW), those that decay, those that do not."""
    hidden: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        role = role_of(name)
        if not parameter.requires_grad:
            continue
        if not role.decays:
            undecayed.append(parameter)
        elif config.optimizer == "muon" and role.muon:
            hidden.append(parameter)
        else:
            decayed.append(parameter)
    return hidden, decayed, undecayed


def make_optimizers(model: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov and Hutter, 2019) for all, or Muon (Jordan et al., 2024) for hidden matrices beside it.

    Norms, biases, embeddings and the temperature do not decay. Muon's updates are scaled to AdamW's size (Liu et al.,
    2025, eq. 4), so that both use one learning rate.
    """
    hidden, decayed, undecayed = parameter_groups(model, config)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in undecayed if parameter.dim()], "weight_decay": 0.0},
        # The temperature is never sharded, and a group cannot mix sharded and unsharded parameters.
        {"params": [parameter for parameter in undecayed if not parameter.dim()], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)
    if not hidden:
        return [adamw]
    make_muon = Float32Muon if hidden[0].device.type == "cpu" else torch.optim.Muon
    muon = make_muon(hidden, lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, adamw]


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Rate of the step numbered ``step`` from 0: a linear warm-up, then half a cosine (Loshchilov and Hutter, 2017)."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * (1 + math.cos(math.pi * progress)) / 2
