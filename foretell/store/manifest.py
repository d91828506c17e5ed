"""model.toml: what is in a package and how it runs. Decoding is strict: unknown keys are errors with a hint."""

import re
from typing import Any, Literal, get_args

import msgspec
import tomli_w

from foretell.core.errors import PackageError, did_you_mean
from foretell.core.generation import Sampling
from foretell.core.settings import BatchingSettings, CacheSettings, GenerationSettings, ReplicaSettings
from foretell.core.tensor import Signature

FORMAT = 1
RuntimeName = Literal["onnx", "sklearn", "xgboost", "lightgbm", "torch", "function", "llm"]


class TextStep(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="text", tag_field="kind"
):
    """Before: BYTES text → token ids, padded to the longest of the batch and cut at `max_length` tokens.

    Feeds input_ids, attention_mask and token_type_ids, whichever the model takes.
    """

    input: str = "text"
    tokenizer: str = "tokenizer.json"
    max_length: int = 256


class ImageStep(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="image", tag_field="kind"
):
    """Before: BYTES of an encoded image (PNG, JPEG, …) → float pixels `output`, (rgb - mean) / std.

    `crop` is the share of the shorter side that the centre crop keeps; mean and std are on the 0–255 scale.
    """

    output: str
    height: int
    width: int
    input: str = "image"
    crop: float = 1.0
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    layout: Literal["nchw", "nhwc"] = "nchw"


class PoolStep(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="pool", tag_field="kind"
):
    """After: token vectors [n, t, d] → one vector a row [n, d], over the tokens that the mask keeps."""

    input: str
    output: str = "embedding"
    method: Literal["mean", "cls", "max"] = "mean"


class NormalizeStep(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    tag="normalize",
    tag_field="kind",
):
    """After: scale each row of `output` to unit Euclidean length."""

    output: str


class LabelsStep(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    tag="labels",
    tag_field="kind",
):
    """After: scores [n, c] → `label` BYTES and `probability` FP32, both [n] (or [n, top] when top > 1).

    `labels` is a JSON list in the package. `softmax` turns logits into probabilities first.
    """

    input: str
    labels: str = "labels.json"
    softmax: bool = True
    top: int = 1


class CustomStep(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    tag="custom",
    tag_field="kind",
):
    """Before and after by the package's own Python file (needs --trust-code).

    The file may define `before(inputs) -> inputs` and `after(outputs, inputs) -> outputs` over dicts of arrays.
    """

    file: str = "transform.py"


BeforeStep = TextStep | ImageStep | CustomStep
AfterStep = PoolStep | NormalizeStep | LabelsStep | CustomStep


class Transform(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Steps in order. `signature` of the package is what clients see; the artifact's own is inside the model."""

    before: tuple[BeforeStep, ...] = ()
    after: tuple[AfterStep, ...] = ()


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who the package is. Not part of the digest: equal contents have equal digests under any name."""

    name: str = ""
    created: str = ""
    foretell: str = ""


class Parity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Proof that a conversion kept the answers: outputs compared on `rows` sample rows.

    `max_abs_diff` was measured; the importer refuses to register above `tolerance` (absolute + relative).
    """

    rows: int
    tolerance: float
    max_abs_diff: float
    against: str


class Lineage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where the artifact came from. `parents` are references of versions it was derived from."""

    source: str = ""
    source_sha256: str = ""
    converter: str = ""
    parents: tuple[str, ...] = ()


class Perplexity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the precision cost: perplexity over `tokens` tokens of a text, of the package and of its weights in fp32."""

    fp32: float
    package: float
    text: str
    tokens: int


class LlmOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A language model: its sizes, which tokens end a text, and how it is sampled by default.

    `bos`: -1 for none. `eos`: the tokenizer's own first. `precision`: of the linear layers; `block_size`: weights
    that share a scale, 0 where no blocks do.
    """

    context: int
    vocab: int
    layers: int
    kv_heads: int
    head_dim: int
    bos: int = -1
    eos: tuple[int, ...] = ()
    precision: Literal["int4", "int8", "fp16", "fp32"] = "fp32"
    block_size: int = 0
    sampling: Sampling = Sampling()
    perplexity: Perplexity | None = None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The decoded model.toml. `artifact` is the file the runtime loads, relative to the package.

    `trust_code` is true when loading executes code that came with the package (pickle, Python); such packages
    load only where the operator passes --trust-code. `idempotent` allows one retry after a replica crash.
    """

    runtime: RuntimeName
    artifact: str
    signature: Signature
    format: int = FORMAT
    description: str = ""
    trust_code: bool = False
    idempotent: bool = True
    package: Identity = Identity()
    transform: Transform = Transform()
    batching: BatchingSettings = BatchingSettings()
    cache: CacheSettings = CacheSettings()
    replicas: ReplicaSettings = ReplicaSettings()
    generation: GenerationSettings = GenerationSettings()
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    llm: LlmOptions | None = None
    parity: Parity | None = None
    lineage: Lineage = Lineage()


_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>[^`]+)`(?: - at `\$\.?(?P<path>[^`]*)`)?")


def _structs(kind: Any) -> list[Any]:
    """The structs in a type: itself, the members of a union, the items of a tuple."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    return [struct for argument in get_args(kind) for struct in _structs(argument)]


def _known_fields(path: str) -> list[str]:
    kinds: list[Any] = [Manifest]
    for part in filter(None, re.sub(r"\[[^]]*\]", "", path).split(".")):
        types = [f.type for kind in kinds for f in msgspec.structs.fields(kind) if f.name == part]
        kinds = [struct for kind in types for struct in _structs(kind)]
    return sorted({f.name for kind in kinds for f in msgspec.structs.fields(kind)})


def decode_manifest(text: str | bytes, where: str = "model.toml") -> Manifest:
    """Parse model.toml. Raises `PackageError` that names the key, what was expected, and the nearest key."""
    try:
        manifest = msgspec.toml.decode(text, type=Manifest)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        match = _UNKNOWN.search(str(error))
        hint = ""
        if match and (fields := _known_fields(match["path"] or "")):
            hint = " " + did_you_mean(match["key"], fields)
        raise PackageError(f"{where}: {error}.{hint}") from None
    if manifest.format != FORMAT:
        raise PackageError(f"{where}: format {manifest.format} is not known to this foretell (it reads {FORMAT})")
    return manifest


def manifest_document(manifest: Manifest) -> dict[str, Any]:
    """The manifest as plain TOML-able data, defaults left out."""
    return {"format": manifest.format, **msgspec.to_builtins(manifest, str_keys=True)}


_NUMBERS = re.compile(r"\[\n((?: +-?[0-9.]+,\n)+) *\]")


def encode_manifest(manifest: Manifest) -> str:
    """Write model.toml for people: defaults left out, shapes on one line."""
    toml = tomli_w.dumps(manifest_document(manifest))
    toml = _NUMBERS.sub(lambda match: f"[{' '.join(match[1].split()).rstrip(',')}]", toml)
    return f"# A foretell package. `foretell show` explains it; docs/packages.md lists every key.\n{toml}"
