"""`make demo`: registers real models, serves them, asks them a few things and shows the answers with their latencies.

Stays until Ctrl-C, which drains the server and leaves nothing running; `--once` ends after the requests.
"""

import argparse
import os
import shlex
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits, load_sample_images

from examples import demo_models
from foretell.app.packages import open_store
from foretell.cli.chat_server import ChatServer
from foretell.cli.child import ChildServer
from foretell.cli.importing import make_package
from foretell.cli.remote import RemoteModel
from foretell.core.columns import to_tensors
from foretell.core.errors import ForetellError

SENTENCES = (
    "a cat on the roof",
    "a kitten on top of the house",
    "the bank raised its rates",
)
REPEATS = 5
QUESTION = "Why is the sky blue? Answer in two sentences."

LITE0_CONFIG = """
signature.inputs = [{ name = "image", datatype = "BYTES", shape = [-1] }]
signature.outputs = [
  { name = "label", datatype = "BYTES", shape = [-1] },
  { name = "probability", datatype = "FP32", shape = [-1] },
]

[[transform.before]]
kind = "image"
output = "image"
height = 224
width = 224
crop = 0.875
mean = [127.0, 127.0, 127.0]
std = [128.0, 128.0, 128.0]

[[transform.after]]
kind = "labels"
input = "logits"
"""

MODELS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "digits": (demo_models.digits, "Hand-written digits, trained on the spot with scikit-learn", ""),
    "minilm": (demo_models.minilm, "Sentence embeddings (all-MiniLM-L6-v2, int8)", ""),
    "smollm2": (demo_models.smollm2, "A small chat model (SmolLM2-135M-Instruct), four-bit weights", ""),
    "lite0": (demo_models.lite0, "ImageNet classes (EfficientNet-Lite0)", LITE0_CONFIG),
}


def register(home: str, wanted: Iterable[str] = MODELS) -> list[str]:
    """Add the `wanted` models that the store at `home` lacks; returns those it has then. Says which cannot be had."""
    with open_store(home) as store:
        known = set(store.names())
        for name in wanted:
            if name in known:
                continue
            build, description, extra = MODELS[name]
            print(f"registering {name} …", flush=True)
            with TemporaryDirectory(prefix="foretell-demo-") as scratch:
                config = Path(scratch, "extra.toml")
                config.write_text(extra)
                try:
                    source = build(Path(scratch, "source"))
                except demo_models.ModelMissing as error:
                    print(f"  left out: {error}")
                    continue
                out = Path(scratch, name)
                make_package(source, out, False, description, None, config, lambda line: print(f"  {line}"))
                print(f"  {store.add(name, out)}")
            known.add(name)
        return [name for name in wanted if name in known]


def commands(url: str, models: list[str]) -> dict[str, str]:
    """What to paste into another terminal, by tool."""
    python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable
    row = load_digits().data[0].astype(int).tolist()
    text = "minilm" in models
    body = (
        '{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["hello world"]}]}'
        if text
        else f'{{"inputs": [{{"name": "X", "datatype": "FP32", "shape": [1, 64], "data": {row}}}]}}'
    )
    script = (
        "import tritonclient.http as t, numpy as np; from sklearn.datasets import load_digits;"
        f' c = t.InferenceServerClient("{url.removeprefix("http://")}"); x = t.InferInput("X", [3, 64], "FP32");'
        " x.set_data_from_numpy(load_digits().data[:3].astype(np.float32));"
        ' print(c.infer("digits", [x]).as_numpy("label"))'
    )
    question = "minilm 'hello world'" if text else f"digits --json {shlex.quote(str([row]))}"
    target, _, rest = question.partition(" ")
    found = {
        "curl": f"curl -s {url}/v2/models/{target}/infer -d {shlex.quote(body)}",
        "tritonclient": f"{python} -c {shlex.quote(script)}",
        "foretell predict": f"{python} -m foretell predict {url}/{target} {rest}",
    }
    if "smollm2" in models:
        found["foretell chat"] = f"{python} -m foretell chat {url} --model smollm2"
    return found


def ask(url: str, models: list[str]) -> Iterator[tuple[str, str, str, float, float]]:
    """Real requests: model, what was asked, the answer, milliseconds of the first and the median of the next."""
    if "minilm" in models:
        (vectors,), first, median = timed(url, "minilm", "text", list(SENTENCES))
        near, far = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
        yield "minilm", f"{SENTENCES[0]} ~ {SENTENCES[1]}", f"similarity {near:.2f}", first, median
        yield "minilm", f"{SENTENCES[0]} ~ {SENTENCES[2]}", f"similarity {far:.2f}", first, median
    if "digits" in models:
        rows, truth = load_digits(return_X_y=True)
        (labels, shares), first, median = timed(url, "digits", "X", rows[:5].astype(np.float32))
        sure = min(share.max() for share in shares)
        asked = f"5 images of {' '.join(map(str, truth[:5]))}"
        yield "digits", asked, f"{' '.join(map(str, labels))} (each at least {sure:.0%} sure)", first, median
    if "lite0" in models:
        for name, path in sample_images():
            (labels, shares), first, median = timed(url, "lite0", "image", [path.read_bytes()])
            yield "lite0", name, f"{labels[0].decode()} ({shares[0]:.0%})", first, median


def stream(url: str) -> None:
    """Ask the language model and write its answer as it comes."""
    reply = ChatServer(url, "smollm2").ask(
        [{"role": "user", "content": QUESTION}], {"temperature": 0, "max_tokens": 80}
    )
    print(f'\nsmollm2, asked "{QUESTION}":\n  ', end="")
    for piece in reply:
        print(piece.replace("\n", "\n  "), end="", flush=True)
    reply.close()
    print(f"\n  ({reply.tokens} tokens, the first after {reply.first_s * 1e3:.0f} ms, {reply.tokens_per_s:.0f}/s)")


def timed(url: str, name: str, column: str, rows: object) -> tuple[list[np.ndarray], float, float]:
    """Outputs in order; milliseconds of the first request, and the median of `REPEATS` more."""
    model = RemoteModel(f"{url}/{name}")
    tensors = to_tensors({column: rows}, model.signature)
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        outputs = model.predict(tensors)
        times.append((time.perf_counter() - began) * 1e3)
    return list(outputs.values()), times[0], statistics.median(times[1:])


def sample_images() -> list[tuple[str, Path]]:
    """The photographs that scikit-learn brings along."""
    paths = [Path(name) for name in load_sample_images().filenames]
    return [(path.name, path) for path in paths]


def free_port(wanted: int) -> int:
    """`wanted` if nobody listens there, else 0 (any free one)."""
    with socket.socket() as probe:
        return 0 if probe.connect_ex(("127.0.0.1", wanted)) == 0 else wanted


def show(server: ChildServer, models: list[str], console: Console) -> None:
    """The addresses, real answers, and what to paste."""
    console.print(f"\n[bold]foretell serves {', '.join(server.models)}[/] (ready after {server.start_s:.1f} s)")
    console.print(f"  REST and OpenAI's API  {server.url}   try it in a browser: {server.url}/docs")
    console.print(f"  gRPC                   {server.grpc}   metrics: {server.url}/metrics\n")
    table = Table(box=None, pad_edge=False, header_style="bold")
    # On a narrow terminal the questions are wrapped; names and latencies never are.
    table.add_column("MODEL", no_wrap=True)
    table.add_column("ASKED")
    table.add_column("ANSWER")
    table.add_column("FIRST", justify="right", no_wrap=True)
    table.add_column("THEN", justify="right", no_wrap=True)
    for model, asked, answer, first, median in ask(server.url, models):
        table.add_row(model, asked, answer, f"{first:.1f} ms", f"{median:.1f} ms")
    console.print(table)
    if "smollm2" in models:
        stream(server.url)
    console.print("\n[bold]Now you, in another terminal:[/]")
    for command in commands(server.url, models).values():
        print(f"\n  {command}")


def interrupt(*_: object) -> None:
    """Ctrl-C and SIGTERM end the demo."""
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve the demo models and ask them a few things.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"some of {', '.join(MODELS)} (default: all)")
    parser.add_argument("--once", action="store_true", help="end after the requests")
    parser.add_argument("--port", type=int, default=-1, help="HTTP port (default 8080 if free)")
    parser.add_argument("--grpc-port", type=int, default=-1, help="gRPC port (default 8081 if free)")
    arguments = parser.parse_args()
    if unknown := set(arguments.models) - set(MODELS):
        parser.error(f"no demo model {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    # Both are set: a shell starts background jobs with SIGINT ignored, and Python then leaves it so.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    home = os.environ.get("FORETELL_HOME") or str(Path(__file__).resolve().parent.parent / ".demo")
    console = Console(highlight=False, soft_wrap=True)
    try:
        models = register(home, arguments.models or MODELS)
        ports = [
            *("--port", str(arguments.port if arguments.port >= 0 else free_port(8080))),
            *("--grpc-port", str(arguments.grpc_port if arguments.grpc_port >= 0 else free_port(8081))),
        ]
        with ChildServer([*models, *ports, "--store", home, "--access-log", "none"]) as server:
            show(server, models, console)
            if not arguments.once:
                print("\nCtrl-C drains and ends everything.", flush=True)
                server.process.wait()
                print("the server ended by itself", file=sys.stderr)
                return 1
    except KeyboardInterrupt:
        print("\ndrained; nothing is left running")
    except ForetellError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
