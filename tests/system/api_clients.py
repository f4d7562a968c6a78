"""What the clients of others make of the device's API: run in an environment that has them, not penchant.

``python api_clients.py URL TOKEN`` prints a table of what each client answered, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import cohere
import openai
from langchain_cohere import CohereRerank
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank as CohereNodes
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

QUERY = "on bill 99: "
DOCUMENTS = ["the table tax", "the motion tax", "cloture"]
SAID: Any = [{"role": "user", "content": "on bill 99:"}]


def ranked(results: Any) -> list[list[float]]:
    return [[result.index, result.relevance_score] for result in results]


def ordered(reranker: Any) -> list[list[Any]]:
    pieces = [NodeWithScore(node=TextNode(text=text)) for text in DOCUMENTS]
    return [
        [DOCUMENTS.index(found.node.get_content()), found.score]
        for found in reranker.postprocess_nodes(pieces, query_str=QUERY)
    ]


def main(url: str, token: str) -> dict[str, Any]:
    first, second = cohere.Client(api_key=token, base_url=url), cohere.ClientV2(api_key=token, base_url=url)
    chat = openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0)
    chain = CohereRerank(client=second, model="any", top_n=3)
    nodes = CohereNodes(api_key=token, model="any", top_n=3, base_url=url)
    jina = JinaRerank(api_key=token, model="any", top_n=3, base_url=f"{url}/v1")
    tei = TextEmbeddingInference(top_n=3, base_url=url, auth_token=f"Bearer {token}")
    answers = chat.chat.completions.create
    asks: dict[str, Callable[[], Any]] = {
        "cohere 1": lambda: ranked(first.rerank(model="any", query=QUERY, documents=DOCUMENTS).results),
        "cohere 2": lambda: ranked(second.rerank(model="any", query=QUERY, documents=DOCUMENTS).results),
        "langchain": lambda: [
            [DOCUMENTS.index(found.page_content), found.metadata["relevance_score"]]
            for found in chain.compress_documents([Document(page_content=text) for text in DOCUMENTS], QUERY)
        ],
        "llama-index": lambda: ordered(nodes),
        "llama-index, Jina's form": lambda: ordered(jina),
        "llama-index, text-embeddings-inference's": lambda: ordered(tei),
        "openai": lambda: answers(model="any", messages=SAID).choices[0].message.content,
        "openai, two": lambda: [c.message.content for c in answers(model="any", messages=SAID, n=2).choices],
        "openai, streamed": lambda: "".join(
            choice.delta.content or ""
            for event in answers(model="any", messages=SAID, stream=True)
            for choice in event.choices
        ),
        "openai, models": lambda: [model.id for model in chat.models.list()],
        "openai, a wrong key": lambda: refusal(url),
    }
    return {name: ask() for name, ask in asks.items()}


def refusal(url: str) -> str:
    try:
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
    except openai.AuthenticationError as error:
        return str(error)
    return "none"


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2])))
