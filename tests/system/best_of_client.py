"""A chat with OpenAI's client, by way of the device's API: run in an environment that has it, not penchant.

``python best_of_client.py URL TOKEN MODEL QUESTION`` prints what it got, as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import openai


def main(url: str, token: str, model: str, question: str) -> dict[str, Any]:
    chat = openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0, timeout=120).chat.completions
    said: Any = [{"role": "user", "content": question}]
    asked: dict[str, Any] = {"model": model, "messages": said, "max_tokens": 12}
    one = chat.with_raw_response.create(**asked, seed=1)
    completion = one.parse()
    all_four = chat.create(**asked, n=4, seed=2)
    parts = list(chat.create(**asked, stream=True, stream_options={"include_usage": True}))
    try:
        chat.create(**{**asked, "model": "another"})
        refused: list[Any] = []
    except openai.BadRequestError as error:
        refused = [error.status_code, error.response.text]
    return {
        "answer": completion.choices[0].message.content,
        "header": [float(score) for score in one.headers["x-penchant-scores"].split(",")],
        "field": (completion.model_extra or {})["penchant"],
        "completion tokens": completion.usage.completion_tokens if completion.usage else 0,
        "four": [choice.message.content for choice in all_four.choices],
        "four, field": (all_four.model_extra or {})["penchant"],
        "streamed": "".join(choice.delta.content or "" for part in parts for choice in part.choices),
        "streamed, ends": [c.finish_reason for part in parts for c in part.choices if c.finish_reason],
        "refused": refused,
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
