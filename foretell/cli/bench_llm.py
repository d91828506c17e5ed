"""`foretell bench llm`."""

import contextlib
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from foretell.app.packages import is_path
from foretell.bench.llm.measure import LlmResult, Targets
from foretell.bench.llm.prompts import FilePrompts, MadePrompts, Prompts, Scale, parse_lengths
from foretell.bench.llm.report import render_text, write_html
from foretell.bench.llm.run import LlmSettings, run_llm
from foretell.bench.load import LoadPlan
from foretell.bench.processes import find_server
from foretell.cli.child import ChildServer
from foretell.cli.console import busy, print_json, stdout
from foretell.cli.options import AsJson, DatabaseUrl, StoreUrl

Target = Annotated[
    str, typer.Argument(metavar="REF|URL", help="A model of the store, a file, or any server with OpenAI's API.")
]
Streams = Annotated[str, typer.Option(metavar="N,…", help="Streams at a time (closed loop).")]
Rate = Annotated[str, typer.Option(metavar="X,…", help="Requests per second instead, arriving at random (open loop).")]
Duration = Annotated[float, typer.Option(metavar="SECONDS", help="Of each measurement.")]
PromptTokens = Annotated[
    str, typer.Option(metavar="LENGTHS", help="128, 64-512 (uniform) or ~256 (log-normal), in tokens.")
]
OutputTokens = Annotated[str, typer.Option(metavar="LENGTHS", help="Of each answer, written like --prompt-tokens.")]
PrefixTokens = Annotated[int, typer.Option(metavar="N", help="The first N tokens of all prompts are equal.")]
PromptFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Real prompts instead: one a line, plain or as JSON.")
]
AsChat = Annotated[bool, typer.Option("--chat", help="Ask for chat completions.")]
FirstToken = Annotated[float | None, typer.Option(metavar="MS", help="Goodput: the first token within this time.")]
PerToken = Annotated[
    float | None, typer.Option(metavar="MS", help="Goodput: each further token within this time, on average.")
]
Price = Annotated[
    float | None,
    typer.Option(metavar="DOLLARS", help="Of the machine, for cost per million tokens.", show_default="0.05 a core"),
]
ModelName = Annotated[str, typer.Option(help="The model's name at a URL.", show_default="the only one")]
Fields = Annotated[
    str, typer.Option(metavar="JSON", help='Fields of every request: {"top_k": 40}; null removes one of ours.')
]
Key = Annotated[
    str, typer.Option(envvar="FORETELL_BENCH_KEY", metavar="KEY", help="Sent as a bearer token.", show_default=False)
]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="An answer that takes longer is an error.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Of prompts and arrivals.", show_default="new each time")]
Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a report with plots.")]


def run(
    target: Target,
    concurrency: Streams = "1,8,32",
    rate: Rate = "",
    duration: Duration = 20.0,
    prompt_tokens: PromptTokens = "128",
    output_tokens: OutputTokens = "64",
    prefix_tokens: PrefixTokens = 0,
    prompts: PromptFile = None,
    chat: AsChat = False,
    ttft_ms: FirstToken = None,
    itl_ms: PerToken = None,
    price_per_hour: Price = None,
    model: ModelName = "",
    fields: Fields = "",
    key: Key = "",
    timeout: Timeout = 120.0,
    seed: Seed = None,
    html: Html = None,
    store: StoreUrl = "",
    database: DatabaseUrl = "",
    as_json: AsJson = False,
) -> None:
    """Measure a language model: first token, inter-token latency, tokens per second, goodput, cost.

    A model of the store is served for the measurement in processes of its own. Answers are greedy and go on to their
    full length where the server takes temperature 0 and ignore_eos.

    \b
    Examples:
      foretell bench llm smollm2
      foretell bench llm smollm2 --rate 0.5,1,2 --ttft-ms 500 --itl-ms 50 --html report.html
      foretell bench llm http://127.0.0.1:8000 --prompt-tokens 64-512 --output-tokens ~128
      foretell bench llm http://127.0.0.1:8000/v1/chat/completions --prompts prompts.jsonl
    """
    # Prompts that a server has seen before would come from its cache, so another run asks others.
    plan = LoadPlan(duration_s=duration, timeout_s=timeout, warmup_s=0, seed=time.time_ns() if seed is None else seed)
    plans = _plans(plan, concurrency, rate)
    lengths = parse_lengths(prompt_tokens, "--prompt-tokens"), parse_lengths(output_tokens, "--output-tokens")
    real = FilePrompts(prompts, lengths[1], plan.seed) if prompts else None

    def make_prompts(scale: Scale) -> Prompts:
        return real or MadePrompts(*lengths, prefix_tokens, scale, plan.seed)

    with contextlib.ExitStack() as stack:
        name, url, model = _server(target, model, {"--store": store, "--database": database}, stack)
        settings = LlmSettings(
            url=url,
            model=model,
            chat=chat,
            key=key,
            more=_fields(fields),
            targets=Targets(_seconds(ttft_ms), _seconds(itl_ms)),
            server_pid=find_server(url) or 0,
            price_per_hour=price_per_hour,
        )
        results = run_llm(name, settings, make_prompts, plans, progress=sys.stderr.isatty())
    _show(results, html, as_json)


def _seconds(milliseconds: float | None) -> float | None:
    return milliseconds / 1e3 if milliseconds else None


def _plans(plan: LoadPlan, concurrency: str, rate: str) -> list[LoadPlan]:
    field, text = ("rate", rate) if rate else ("concurrency", concurrency)
    try:
        numbers = [float(part) if rate else int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f'"{text}" is no list of numbers; write 1,8,32', param_hint=f"--{field}") from None
    return [msgspec.structs.replace(plan, **{field: number}).check() for number in numbers]


def _fields(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise typer.BadParameter(f"{text} is no JSON object: {error}", param_hint="--fields") from None


def _server(target: str, model: str, flags: dict[str, str], stack: contextlib.ExitStack) -> tuple[str, str, str]:
    """The name of what is measured, its URL and its model there; anything but a URL is served until `stack` closes."""
    if target.startswith(("http://", "https://")):
        return model, target, model
    arguments = [target, "--port", "0", "--grpc-port", "-1", "--access-log", "none"]
    arguments += [part for flag, value in flags.items() if value for part in (flag, value)]
    with busy(f"starting {target}"):
        server = stack.enter_context(ChildServer(arguments))
    name, _, version = server.models[0].partition("@")
    return (f"{name} ({Path(target).name})" if is_path(target) else f"{name}@{version}"), server.url, name


def _show(results: list[LlmResult], html: Path | None, as_json: bool) -> None:
    if as_json:
        print_json(results)
    else:
        stdout().print(render_text(results))
    if html:
        write_html(results, html)
