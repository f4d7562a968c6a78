// What clients from npm make of the device's API: `node api_clients.mjs URL TOKEN`, in a folder that has them.
// Prints a table of what each client answered, as JSON; api_clients.py does the same for those of PyPI.
import { CohereRerank } from "@langchain/cohere";
import { CohereClient, CohereClientV2 } from "cohere-ai";
import OpenAI from "openai";

const [url, token] = process.argv.slice(2);
const query = "on bill 99: ";
const documents = ["the table tax", "the motion tax", "cloture"];
const messages = [{ role: "user", content: "on bill 99:" }];

const ranked = (answer) => answer.results.map((one) => [one.index, one.relevanceScore]);
const first = new CohereClient({ token, environment: url });
const second = new CohereClientV2({ token, environment: url });
const chain = new CohereRerank({ client: first, model: "any", topN: 3 });
const client = (apiKey) => new OpenAI({ apiKey, baseURL: `${url}/v1`, maxRetries: 0 });
const { completions } = client(token).chat;

const streamed = async () => {
  let text = "";
  for await (const part of await completions.create({ model: "any", messages, stream: true }))
    text += part.choices[0]?.delta?.content ?? "";
  return text;
};
const refusal = (asked) => asked.then(() => "none", (error) => [error.constructor.name, error.message]);

const one = await completions.create({ model: "any", messages }).withResponse();
console.log(
  JSON.stringify({
    "cohere 1": ranked(await first.rerank({ model: "any", query, documents })),
    "cohere 2": ranked(await second.rerank({ model: "any", query, documents })),
    "cohere 2, the first two": ranked(await second.rerank({ model: "any", query, documents, topN: 2 })),
    langchain: (await chain.rerank(documents, query)).map((one) => [one.index, one.relevanceScore]),
    openai: one.data.choices[0].message.content,
    "openai, header": one.response.headers.get("x-penchant-scores"),
    "openai, field": one.data.penchant,
    "openai, streamed": await streamed(),
    "openai, models": (await client(token).models.list()).data.map((model) => model.id),
    "openai, a wrong key": await refusal(client("wrong").models.list()),
    "cohere, a wrong key": await refusal(
      new CohereClientV2({ token: "wrong", environment: url }).rerank({ model: "any", query, documents }),
    ),
  }),
);
