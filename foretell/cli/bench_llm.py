"""`foretell bench llm`."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from foretell.app.packages import is_path
from foretell.bench.llm.measure import Targets
from foretell.bench.llm.openai import Endpoint
from foretell.bench.llm.prompts import FilePrompts, MadePrompts, Prompts, parse_lengths
from foretell.bench.llm.report import render_text, write_html
from foretell.bench.llm.run import LlmSettings, run_llm
from foretell.bench.load import LoadPlan
from foretell.bench.processes import find_server
from foretell.cli.child import ChildServer
from foretell.cli.console import busy, print_json, stdout
from foretell.cli.options import AsJson, DatabaseUrl, StoreUrl, TrustCode


def run(
    target: Annotated[
        str, typer.Argument(metavar="REF|URL", help="A model of the store, a file, or any server with OpenAI's API.")
    ],
    concurrency: Annotated[str, typer.Option(metavar="N,…", help="Streams at a time (closed loop).")] = "1,8,32",
    rate: Annotated[
        str, typer.Option(metavar="X,…", help="Requests per second instead, arriving at random (open loop).")
    ] = "",
    duration: Annotated[float, typer.Option(metavar="SECONDS", help="Of each measurement.")] = 20.0,
    requests: Annotated[
        int, typer.Option(metavar="N", help="Requests of each measurement, instead of a duration.")
    ] = 0,
    prompt_tokens: Annotated[
        str, typer.Option(metavar="LENGTHS", help="128, 64-512 (uniform) or ~256 (log-normal).")
    ] = "128",
    output_tokens: Annotated[
        str, typer.Option(metavar="LENGTHS", help="Tokens of each answer; as --prompt-tokens.")
    ] = "64",
    prefix_tokens: Annotated[int, typer.Option(metavar="N", help="The first N tokens of all prompts are equal.")] = 0,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Real prompts instead: one a line, plain or as JSON.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask for chat completions.")] = False,
    ttft_ms: Annotated[float | None, typer.Option(metavar="MS", help="Goodput: first token within this time.")] = None,
    itl_ms: Annotated[
        float | None, typer.Option(metavar="MS", help="Goodput: mean time per further token within this.")
    ] = None,
    price_per_hour: Annotated[
        float | None,
        typer.Option(
            metavar="DOLLARS", help="What the machine costs, for cost per million tokens.", show_default="0.05 a core"
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="The model's name at a URL.", show_default="the only one")] = "",
    fields: Annotated[
        str, typer.Option(metavar="JSON", help='Fields of every request: {"temperature": 1}; null removes one of ours.')
    ] = "",
    key: Annotated[
        str,
        typer.Option(envvar="FORETELL_BENCH_KEY", metavar="KEY", help="Sent as a bearer token.", show_default=False),
    ] = "",
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="A longer answer is an error.")] = 120.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of prompts and arrivals.")] = 0,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a report with plots.")] = None,
    trust_code: TrustCode = False,
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
    plan = LoadPlan(duration_s=duration, requests=requests, timeout_s=timeout, warmup_s=0, seed=seed)
    plans = _plans(plan, concurrency, rate)
    lengths = parse_lengths(prompt_tokens, "--prompt-tokens"), parse_lengths(output_tokens, "--output-tokens")

    def make_prompts(endpoint: Endpoint) -> Prompts:
        if prompts:
            return FilePrompts(prompts, lengths[1], seed)
        return MadePrompts(*lengths, prefix_tokens, endpoint.scale, seed)

    flags = ["--trust-code"] if trust_code else []
    flags += [*(["--store", store] if store else []), *(["--database", database] if database else [])]
    with contextlib.ExitStack() as stack:
        name, url, model = _server(target, model, flags, stack)
        settings = LlmSettings(
            url=url,
            model=model,
            chat=chat,
            key=key,
            more=_fields(fields),
            targets=Targets(ttft_ms / 1e3 if ttft_ms else None, itl_ms / 1e3 if itl_ms else None),
            server_pid=find_server(url) or 0,
            price_per_hour=price_per_hour,
        )
        results = run_llm(name, settings, make_prompts, plans, progress=sys.stderr.isatty())
    if as_json:
        print_json(results)
    else:
        stdout().print(render_text(results))
    if html:
        write_html(results, html)


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


def _server(target: str, model: str, flags: list[str], stack: contextlib.ExitStack) -> tuple[str, str, str]:
    """The name of what is measured, its URL and its model there; anything but a URL is served until `stack` closes."""
    if target.startswith(("http://", "https://")):
        return model, target, model
    quiet = ["--port", "0", "--grpc-port", "-1", "--access-log", "none"]
    with busy(f"starting {target}"):
        server = stack.enter_context(ChildServer([target, *quiet, *flags]))
    name, _, version = server.models[0].partition("@")
    return (f"{name} ({Path(target).name})" if is_path(target) else f"{name}@{version}"), server.url, name
