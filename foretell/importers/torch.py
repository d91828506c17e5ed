"""PyTorch programs: torch.export files are kept as they are (their weights are unpickled, so they need trust)."""

from pathlib import Path

import torch

from foretell.core.errors import PackageError, UntrustedCode
from foretell.importers.draft import Draft, copy_file
from foretell.runtimes.torch import read_program


def import_file(path: Path, draft: Draft, kind: str) -> None:
    """Read the signature from the exported program. Raises `UntrustedCode` without --trust-code."""
    if not draft.trusted:
        raise UntrustedCode(
            f"{path}: torch unpickles parts of a torch.export file, which can run code. Pass --trust-code if you"
            " trust whoever made it, or export the model to ONNX (torch.onnx.export)"
        )
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise PackageError(f"{path}: not a program torch {torch.__version__} can load ({str(error)[:200]})") from None
    draft.artifact = copy_file(path, draft.folder, "model.pt2")
    draft.runtime, draft.runs_code = "torch", True
    draft.signature, _ = read_program(program)
    if not draft.signature.batchable:
        draft.report("the first axis is fixed, so every request runs alone; export with a dynamic batch dimension")
    names = [spec.name for spec in draft.signature.outputs]
    draft.report(f"kept as torch; outputs: {', '.join(names)} (rename them with options.outputs in model.toml)")
