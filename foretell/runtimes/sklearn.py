"""scikit-learn packages: a fitted estimator in skops format (no code), or pickled under --trust-code."""

import importlib
from pathlib import Path
from typing import Any, Literal

import joblib
import msgspec
import numpy as np
from skops.io import get_untrusted_types
from skops.io import load as load_skops
from threadpoolctl import threadpool_limits

from foretell.core.errors import PackageError
from foretell.core.settings import ReplicaSettings
from foretell.core.tensor import Signature, Tensors, TensorSpec
from foretell.core.text import decode_text
from foretell.runtimes.columns import CLASS_NAMES, PROBABILITY_NAMES, fit_output, matrix
from foretell.runtimes.options import artifact_signature, only_cpu, read_options
from foretell.runtimes.trust import refuse_untrusted
from foretell.store.package import Package

PLAIN_DATA = frozenset(
    {
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.neighbors._ball_tree.BallTree",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.tree._tree.Tree",
    }
)
"""scikit-learn's own arrays and trees, which skops leaves us to vouch for: they hold numbers and run no code."""

Method = Literal["predict", "predict_proba", "decision_function", "transform", "score_samples"]


class SklearnOptions(msgspec.Struct, frozen=True):
    """[options] of a sklearn package.

    outputs: which method makes which output; by default "label" comes from predict, "probabilities" from
    predict_proba and any other single output from predict (or transform, if the estimator cannot predict).
    signature: what the estimator takes and makes, where transforms surround it.
    """

    outputs: dict[str, Method] = msgspec.field(default_factory=dict)
    signature: Signature | None = None


class SklearnPredictor:
    """Calls the estimator's methods; several inputs become the columns of one table."""

    def __init__(self, estimator: Any, signature: Signature, methods: dict[str, Method]) -> None:
        self._estimator = estimator
        self._signature = signature
        self._methods = methods
        self._frame = _frame_maker(estimator, signature)
        self._text = [s.name for s in signature.inputs if s.datatype == "BYTES"]

    @property
    def signature(self) -> Signature:
        return self._signature

    def predict(self, inputs: Tensors) -> Tensors:
        if self._text:
            inputs = {**inputs, **{name: decode_text(inputs[name], name) for name in self._text}}
        table = self._table(inputs)
        results = {method: getattr(self._estimator, method)(table) for method in set(self._methods.values())}
        return {s.name: fit_output(_dense(results[self._methods[s.name]]), s) for s in self._signature.outputs}

    def close(self) -> None:
        self._estimator = None

    def _table(self, inputs: Tensors) -> Any:
        if self._frame is not None:
            return self._frame({name: array.reshape(-1) for name, array in inputs.items()})
        first = self._signature.inputs[0]
        if len(inputs) == 1 and first.datatype == "BYTES" and len(first.shape) == 1:
            return inputs[first.name]  # vectorizers take a sequence of texts
        return matrix(inputs, self._signature)


def _frame_maker(estimator: Any, signature: Signature) -> Any:
    """pandas.DataFrame if the estimator was fitted on one and the inputs are its columns by name, else None."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is None or {s.name for s in signature.inputs} != set(names):
        return None
    frame = importlib.import_module("pandas").DataFrame
    return lambda columns: frame(columns, columns=list(names))


def _dense(result: Any) -> Any:
    return result.toarray() if hasattr(result, "toarray") else result


def choose_methods(estimator: Any, signature: Signature, declared: dict[str, Method]) -> dict[str, Method]:
    """The estimator's method for each output. Raises `PackageError` if it has none that fits."""
    methods = {s.name: declared.get(s.name) or _default_method(estimator, s) for s in signature.outputs}
    for name, method in methods.items():
        if not hasattr(estimator, method):
            raise PackageError(
                f'output "{name}" comes from {method}, which {type(estimator).__name__} does not have; set'
                f' options.outputs = {{ "{name}" = "…" }} in model.toml, or leave the output out'
            )
    return methods


def _default_method(estimator: Any, spec: TensorSpec) -> Method:
    if spec.name in PROBABILITY_NAMES:
        return "predict_proba"
    if spec.name in CLASS_NAMES or hasattr(estimator, "predict"):
        return "predict"
    return "transform"


def untrusted_types(path: Path) -> list[str]:
    """Types in a .skops file whose loading might run code: neither skops nor `PLAIN_DATA` vouches for them."""
    return [name for name in get_untrusted_types(file=path) if name not in PLAIN_DATA]


def load_estimator(package: Package, trust_code: bool) -> Any:
    """The fitted estimator. A .skops file loads without running code unless it names types skops does not know.

    Raises `UntrustedCode` for such types and for pickles without `trust_code`, `PackageError` if it is damaged.
    """
    path = package.artifact
    if path.suffix != ".skops" and not trust_code:
        refuse_untrusted(package, f"{path.name} is a pickle, and unpickling runs code")
    try:
        if path.suffix != ".skops":
            return joblib.load(path)
        unknown = untrusted_types(path)
    except Exception as error:
        raise PackageError(f"{path.name} cannot be read: {type(error).__name__}: {error}") from None
    if unknown and not trust_code:
        refuse_untrusted(package, f"{path.name} holds types that skops cannot vouch for: {', '.join(unknown)}")
    try:
        return load_skops(path, trusted=[*unknown, *PLAIN_DATA])
    except Exception as error:
        raise PackageError(f"{path.name} cannot be read: {type(error).__name__}: {error}") from None


def open_predictor(package: Package, settings: ReplicaSettings, trust_code: bool) -> SklearnPredictor:
    """Load the estimator; its jobs, BLAS and OpenMP get the replica's threads."""
    only_cpu(settings, "sklearn")
    options = read_options(package.manifest, SklearnOptions)
    signature = artifact_signature(package.manifest, options.signature)
    estimator = load_estimator(package, trust_code)
    if settings.threads:
        threadpool_limits(settings.threads)  # of the process: BLAS and OpenMP know no other scope
    if hasattr(estimator, "n_jobs"):
        estimator.n_jobs = settings.threads or -1
    expected = getattr(estimator, "n_features_in_", None)
    width = sum(s.shape[1] if len(s.shape) > 1 else 1 for s in signature.inputs)
    numeric = all(s.datatype != "BYTES" and -1 not in s.shape[1:] for s in signature.inputs)
    if expected is not None and numeric and int(np.asarray(expected)) != width:
        raise PackageError(f"{package.artifact.name} was fitted on {expected} features, model.toml declares {width}")
    return SklearnPredictor(estimator, signature, choose_methods(estimator, signature, options.outputs))
