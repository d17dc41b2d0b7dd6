"""A layer of torch's beside one of ours, and what is done to both."""

from __future__ import annotations

import torch
from torch import nn

import fastrnn

CELLS = ["LSTM", "RNN", "GRU"]
X = torch.randn(5, 3, 4)


def pair(cell, *args, **kwargs):
    """torch's layer and ours on torch's own path, with equal weights."""
    theirs, ours = getattr(nn, cell)(*args, **kwargs), getattr(fastrnn, cell)(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    ours.backend = "aten"
    return theirs, ours


def same(theirs, ours, x=X):
    return torch.equal(ours(x)[0], theirs(x)[0])


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2

    def right_inverse(self, weight):
        return weight * 2
