"""Exported programs for the tests; importing this needs torch."""

from pathlib import Path

import torch

ROWS = {0: torch.export.Dim("rows")}


class Net(torch.nn.Module):
    """Two outputs in a dict, whose keys are the package's output names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layer(X)
        return {"label": logits.argmax(1), "probabilities": logits.softmax(1)}


def save_classifier(path: Path) -> None:
    """Write a program that takes X [n, 4] FP32 and returns label and probabilities."""
    program = torch.export.export(Net().eval(), (torch.zeros(2, 4),), dynamic_shapes={"X": ROWS})
    torch.export.save(program, path)
