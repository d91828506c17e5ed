"""ONNX files: the signature is read from the graph; a tokenizer or labels beside it become transforms."""

from pathlib import Path

import msgspec

from foretell.accel.ort import Description, describe
from foretell.core.errors import PackageError
from foretell.core.tensor import Signature, TensorSpec
from foretell.importers.draft import Draft, copy_file
from foretell.store.manifest import LabelsStep, NormalizeStep, PoolStep, TextStep

_TOKEN_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})
_TOKEN_VECTORS = ("last_hidden_state", "token_embeddings")


def import_file(path: Path, draft: Draft, kind: str) -> None:
    """Take the graph as it is; add the transforms that its companions call for (unless the user declared any)."""
    draft.artifact = copy_file(path, draft.folder, "model.onnx")
    data = path.with_name(path.name + ".data")
    if data.exists() and not (draft.folder / data.name).exists():
        copy_file(data, draft.folder)
    description = describe(draft.folder / draft.artifact)
    draft.runtime, draft.signature = "onnx", _row_axis_checked(description, draft)
    for name in description.left_out:
        draft.report(f'output "{name}" is not a tensor and is left out')
    if "transform" in draft.config:
        return
    if (draft.folder / "tokenizer.json").exists() and _TOKEN_INPUTS & {s.name for s in draft.signature.inputs}:
        _add_text(draft)
    if (draft.folder / "labels.json").exists():
        _add_labels(draft)


def _row_axis_checked(description: Description, draft: Draft) -> Signature:
    signature = description.signature
    symbols = set(description.row_symbols.values()) - {""}
    if signature.batchable and len(symbols) > 1:
        draft.report(
            f"the inputs' first axes have different names ({', '.join(sorted(symbols))}); they are taken for the same"
            " rows. Name them alike, or fix the shapes in model.toml, if they are not"
        )
    if not signature.batchable:
        draft.report("the first axis of a tensor is fixed, so every request runs alone; export with a dynamic batch")
    return signature


def _add_text(draft: Draft) -> None:
    draft.before.append(TextStep())
    outputs = list(draft.signature.outputs)
    for spec in outputs:
        if spec.name in _TOKEN_VECTORS and len(spec.shape) == 3:
            draft.after += [PoolStep(input=spec.name), NormalizeStep(output="embedding")]
            outputs = [TensorSpec("embedding", "FP32", (-1, spec.shape[2]))]
            draft.report("text in, sentence embedding out: tokenizer, mean pooling and normalisation are added")
            break
    kept = tuple(s for s in draft.signature.inputs if s.name not in _TOKEN_INPUTS)
    draft.signature = Signature((TensorSpec("text", "BYTES", (-1,)), *kept), tuple(outputs))


def _add_labels(draft: Draft) -> None:
    try:
        labels = msgspec.json.decode((draft.folder / "labels.json").read_bytes(), type=list[str])
    except msgspec.DecodeError as error:
        raise PackageError(f'labels.json is no list of names, ["cat", "dog", …]: {error}') from None
    scores = [s for s in draft.signature.outputs if s.datatype.startswith("FP") and len(s.shape) == 2]
    fitting = [s for s in scores if s.shape[1] in (-1, len(labels))]
    if len(fitting) != 1:
        raise PackageError(
            f"labels.json has {len(labels)} names, and {len(fitting)} outputs have as many scores; declare a labels"
            " step in model.toml (transform.after)"
        )
    draft.after.append(LabelsStep(input=fitting[0].name))
    others = tuple(s for s in draft.signature.outputs if s is not fitting[0])
    named = (TensorSpec("label", "BYTES", (-1,)), TensorSpec("probability", "FP32", (-1,)))
    draft.signature = Signature(draft.signature.inputs, (*named, *others))
    draft.report(f"scores in {fitting[0].name} get the names in labels.json")
