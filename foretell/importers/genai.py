"""Folders that onnxruntime-genai's model builder made: graphs of many more architectures, run as they are."""

from pathlib import Path
from typing import Any

import onnx

from foretell.accel.ort import describe
from foretell.core.errors import PackageError, Unsupported
from foretell.importers.draft import Draft, copy_file
from foretell.importers.huggingface import ends, read_json, read_template, read_tokenizer, sampling
from foretell.importers.llm import ARTIFACT, SIGNATURE, all_ends, write_texts
from foretell.store.manifest import LlmOptions

_FED = ("input_ids", "attention_mask", "position_ids", "past_key_values.")


def import_file(folder: Path, draft: Draft, kind: str) -> None:
    """Make a package of a builder's folder. Raises `Unsupported` for graphs that need other inputs than tokens."""
    if draft.choices.given:
        raise PackageError(f"{folder}: the builder chose the precision already; give --precision to it instead")
    genai = read_json(folder / "genai_config.json")
    model: dict[str, Any] = genai.get("model") or {}
    decoder: dict[str, Any] = model.get("decoder") or {}
    path = folder / str(decoder.get("filename") or ARTIFACT)
    if path.parent != folder or not path.is_file():
        raise PackageError(f"{folder / 'genai_config.json'}: the graph {path.name} is not in the folder")
    kv_heads, head_dim = _number(decoder, "num_key_value_heads"), _number(decoder, "head_size")
    graph = _copy(path, kv_heads, head_dim, draft)
    precision, block_size = _precision(graph)
    settings = read_json(folder / "tokenizer_config.json", needed=False)
    tokenizer = read_tokenizer(folder)
    bos, eos = ends(tokenizer, settings, (model,))
    write_texts(draft, tokenizer, read_template(folder, settings, draft))
    draft.runtime, draft.artifact, draft.signature = "llm", ARTIFACT, SIGNATURE
    draft.llm = LlmOptions(
        context=_number(model, "context_length"),
        vocab=_number(model, "vocab_size"),
        layers=_number(decoder, "num_hidden_layers"),
        kv_heads=kv_heads,
        head_dim=head_dim,
        bos=bos,
        eos=all_ends(eos, draft),
        precision=precision,
        block_size=block_size,
        sampling=sampling(genai.get("search") or {}),
    )


def _number(values: dict[str, Any], key: str) -> int:
    value = values.get(key)
    if not isinstance(value, int) or value <= 0:
        raise PackageError(f'genai_config.json: "{key}" should be a positive number, it is {value!r}')
    return value


def _copy(path: Path, kv_heads: int, head_dim: int, draft: Draft) -> Any:
    """Copy the graph, with the sizes of keys and values written into it, and its weights. Returns the graph."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, which onnx does not name
        raise PackageError(f"{path.name}: not a readable ONNX file, or cut short ({error})") from None
    graph = model.graph
    names = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    for name in sorted(names):
        if Path(name).name != name:
            raise PackageError(f'{path.name} keeps weights in "{name}", outside its folder')
        copy_file(path.parent / name, draft.folder)
    for value in (*graph.input, *graph.output):
        if value.name.startswith(("past_key_values.", "present.")):
            # The builder leaves them open ("kv_cache_dim"); whoever makes room for keys and values must know.
            axes = value.type.tensor_type.shape.dim
            axes[1].dim_value, axes[3].dim_value = kv_heads, head_dim
    onnx.save(model, draft.folder / ARTIFACT)
    signature = describe(draft.folder / ARTIFACT).signature
    others = [spec.name for spec in signature.inputs if not spec.name.startswith(_FED)]
    if others or "logits" not in {spec.name for spec in signature.outputs}:
        raise Unsupported(
            f"{path.name} takes {', '.join(others) or 'tokens'} and makes {signature.outputs[0].name}; foretell feeds"
            " tokens and their mask and reads logits. Build it without extra options, for the CPU"
        )
    return graph


def _precision(graph: Any) -> tuple[Any, int]:
    """Of the linear layers, and how many weights share a scale."""
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            given = {each.name: each.i for each in node.attribute}
            return f"int{given.get('bits', 4)}", int(given["block_size"])
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)
    return "fp16" if half else "fp32", 0
