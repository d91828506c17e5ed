"""Asks a server by litellm, unchanged, and prints what it got as JSON. Runs in litellm's own environment, since it
wants an older openai than the other tests: `python litellm_asks.py http://HOST:PORT`.
"""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the internet for prices when it is imported

import litellm

HI = [{"role": "user", "content": "say hello"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def ask(url: str, model: str = "chat", **fields):
    return litellm.completion(
        model=f"openai/{model}", messages=HI, api_base=f"{url}/v1", api_key="none", max_retries=0, timeout=10, **fields
    )


def streamed(url: str, model: str = "chat", **fields):
    chunks = list(ask(url, model, stream=True, stream_options={"include_usage": True}, **fields))
    return litellm.stream_chunk_builder(chunks, messages=HI)


def told(answer) -> dict:
    (choice,) = answer.choices
    return {
        "text": choice.message.content,
        "reason": choice.finish_reason,
        "tokens": answer.usage.completion_tokens,
        "calls": [[call.function.name, call.function.arguments] for call in choice.message.tool_calls or ()],
    }


def error(call, *arguments, **fields) -> list[str]:
    """The names of an error's classes, and what it says."""
    try:
        call(*arguments, **fields)
    except Exception as caught:
        return [*(kind.__name__ for kind in type(caught).__mro__), str(caught)]
    return []


def main(url: str) -> dict:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    text = litellm.text_completion(
        model="text-completion-openai/chat", prompt="hi", api_base=f"{url}/v1", api_key="none", num_retries=0
    )
    return {
        "whole": told(ask(url, temperature=0.5, max_tokens=9, stop=["x"], response_format=schema)),
        "streamed": told(streamed(url)),
        "tools": told(ask(url, "calls", tools=[WEATHER])),
        "tools streamed": told(streamed(url, "calls", tools=[WEATHER])),
        "text": text.choices[0].text,
        "errors": {model: error(ask, url, model) for model in ("nobody", "refuses", "full", "breaks")},
        "broken stream": error(streamed, url, "breaks"),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
