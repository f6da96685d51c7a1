// The Vercel AI SDK with its Google provider: a conversation, generated and streamed, with a tool, and an embedding.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { MODEL, URL_, call, equal, holds, line } from "./telling.mjs";

// Programs stand outside of the folder where their packages are.
const require = createRequire(path.join(process.env.CLIENT_HOME, "package.json"));
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const { embedMany, generateText, jsonSchema, streamText, tool } = await load("ai");
const { createGoogleGenerativeAI } = await load("@ai-sdk/google");

const home = path.join(process.env.CLIENT_HOME, "node_modules", "ai", "package.json");
line({ client: "Vercel AI SDK", version: JSON.parse(readFileSync(home)).version, transport: "fetch" });
const google = createGoogleGenerativeAI({ apiKey: "any-text", baseURL: `${URL_}/v1beta` });
const model = google(MODEL);
const messages = [];

await call("generateText (three turns)", async () => {
  for (const said of ["one", "two", "three"]) {
    messages.push({ role: "user", content: said });
    const answer = await generateText({ model, messages });
    equal(answer.text, `You said: ${said}`);
    messages.push({ role: "assistant", content: answer.text });
  }
});
await call("streamText", async () => {
  const pieces = [];
  const stream = streamText({ model, messages: [...messages, { role: "user", content: "four" }] });
  for await (const piece of stream.textStream) pieces.push(piece);
  equal(pieces.join(""), "You said: four");
  holds(pieces.length > 1, pieces);
});
await call("generateText with a tool", async () => {
  const inputSchema = jsonSchema({ type: "object", properties: { city: { type: "string" } } });
  const tools = { weather: tool({ description: "The weather", inputSchema, execute: async () => "fine" }) };
  equal((await generateText({ model, prompt: "five", tools })).text, "You said: five");
});
await call("embedMany", async () => {
  const embedded = await embedMany({ model: google.textEmbeddingModel("gemini-embedding-001"), values: ["x", "y"] });
  equal(embedded.embeddings.map((each) => each.length), [8, 8]);
});
