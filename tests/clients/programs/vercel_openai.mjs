// The Vercel AI SDK with its OpenAI provider, by chat completions and by responses, on both kinds of upstream.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { MODEL, TOKEN, URL_, call, equal, holds, line } from "./telling.mjs";

// Programs stand outside of the folder where their packages are.
const require = createRequire(path.join(process.env.CLIENT_HOME, "package.json"));
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const { embedMany, generateImage, generateText, jsonSchema, stepCountIs, streamText, tool } = await load("ai");
const { createOpenAI } = await load("@ai-sdk/openai");

const home = path.join(process.env.CLIENT_HOME, "node_modules", "ai", "package.json");
line({ client: "Vercel AI SDK (OpenAI)", version: JSON.parse(readFileSync(home)).version, transport: "fetch" });
const openai = createOpenAI({ apiKey: TOKEN, baseURL: `${URL_}/v1` });
const inputSchema = jsonSchema({ type: "object", properties: { said: { type: "string" } } });
const tools = { look: tool({ description: "Looks", inputSchema, execute: async () => "a bird" }) };

const models = [
  ["chat", openai.chat("oa/gpt-4o-mini")],
  ["responses", openai.responses("oa/gpt-4o-mini")],
  ["gemini, chat", openai.chat(`gemini/${MODEL}`)],
];
for (const [name, model] of models) {
  const messages = [];
  await call(`generateText (${name}, three turns)`, async () => {
    for (const said of ["one", "two", "three"]) {
      messages.push({ role: "user", content: said });
      const answer = await generateText({ model, messages });
      equal(answer.text, `You said: ${said}`);
      messages.push({ role: "assistant", content: answer.text });
    }
  });
  await call(`streamText (${name})`, async () => {
    const pieces = [];
    const stream = streamText({ model, messages: [...messages, { role: "user", content: "four" }] });
    for await (const piece of stream.textStream) pieces.push(piece);
    equal(pieces.join(""), "You said: four");
    holds(pieces.length > 1, pieces);
  });
  await call(`generateText (${name}, with a tool)`, async () => {
    const answer = await generateText({ model, prompt: "five", tools, stopWhen: stepCountIs(3) });
    equal(answer.text, "You said: a bird");
  });
}
await call("embedMany", async () => {
  const embedded = await embedMany({ model: openai.embeddingModel("oa/text-embedding-3-small"), values: ["x", "y"] });
  equal(embedded.embeddings.map((each) => each.length), [1536, 1536]);
});
await call("generateImage", async () => {
  const { image } = await generateImage({ model: openai.image("oa/gpt-image-1"), prompt: "a bird" });
  equal(image.mediaType, "image/png");
});
