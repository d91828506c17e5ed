"""`foretell check` of a language model: a short text by a replica, through the whole pipe, and by this process."""

import asyncio
import time

import msgspec

from foretell.app.model import Model
from foretell.app.packages import Opened
from foretell.core.errors import ModelFailed
from foretell.core.generation import Finished, GenerateRequest, Piece, Sampling, Started, Stops
from foretell.core.reference import Reference
from foretell.fleet.launcher import LocalProcess
from foretell.plane.plane import Plane
from foretell.plane.spec import DeploymentSpec

PROMPT = "The capital of France is"
TOKENS = 16
RUNS = 3


class GenerationFindings(msgspec.Struct):
    """What a check found: the best of `RUNS`. `prompt_tokens` of the prompt became `tokens` of text."""

    model: str
    digest: str
    prompt_tokens: int
    tokens: int
    first_token_ms: float
    tokens_per_s: float
    start_s: float
    text: str


def request() -> GenerateRequest:
    """Greedy and of fixed length, so that every run gives the same."""
    stops = Stops(max_tokens=TOKENS, ignore_eos=True)
    return GenerateRequest(PROMPT, Sampling(temperature=0.0), stops, protocol="check")


def examine(opened: Opened, spec: DeploymentSpec) -> GenerationFindings:
    """Check one package. Raises `ModelFailed` if replica and process say different things."""
    with Model(opened, settings=spec.replicas) as model:
        direct = "".join(event.text for event in model.events(request()) if isinstance(event, Piece))
    findings = asyncio.run(_through_the_pipe(opened, spec))
    if findings.text != direct:
        raise ModelFailed(f'the replica says "{findings.text}", this process "{direct}"; the model is not repeatable')
    return findings


async def _through_the_pipe(opened: Opened, spec: DeploymentSpec) -> GenerationFindings:
    began = time.perf_counter()
    plane = Plane(LocalProcess, lambda observation: None)
    try:
        await plane.deploy(spec)
        start_s = time.perf_counter() - began
        runs = [await _run(plane, spec) for _ in range(RUNS)]
    finally:
        await plane.close(1.0)
    texts = {text for *_, text in runs}
    if len(texts) > 1:
        raise ModelFailed(f"the same request was answered in {len(texts)} ways: {sorted(texts)}")
    prompt_tokens, tokens, _, _, text = runs[0]
    return GenerationFindings(
        f"{opened.name}@{opened.version}",
        opened.package.digest,
        prompt_tokens,
        tokens,
        min(first_s for _, _, first_s, _, _ in runs) * 1e3,
        max((tokens - 1) / rest_s for _, tokens, _, rest_s, _ in runs),
        start_s,
        text,
    )


async def _run(plane: Plane, spec: DeploymentSpec) -> tuple[int, int, float, float, str]:
    """Tokens of the prompt and of the text, seconds to the first piece and from there to the end, the text."""
    began = time.perf_counter()
    first_s = 0.0
    prompt_tokens = tokens = 0
    text = ""
    async for event in plane.generate(Reference(spec.name, spec.version), request()):
        if isinstance(event, Started):
            prompt_tokens = event.prompt_tokens
        elif isinstance(event, Piece):
            first_s = first_s or time.perf_counter() - began
            text += event.text
        elif isinstance(event, Finished):
            tokens = event.completion_tokens
    return prompt_tokens, tokens, first_s, time.perf_counter() - began - first_s, text


def show(findings: GenerationFindings) -> None:
    """The findings for people."""
    print(f"{findings.model} is sound ({findings.digest[:12]})")
    print(f"  replica  ready after {findings.start_s:.2f} s; says the same as this process")
    print(f"  speed    first token {findings.first_token_ms:.1f} ms, then {findings.tokens_per_s:.0f} tokens/s")
    print(f"  text     {PROMPT}{findings.text!r:.100}")
