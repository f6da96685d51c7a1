// openai for JavaScript on a model whose upstream keeps the conversation: whole, streamed, sessions, refused.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { TOKEN, URL_, call, equal, every, holds, line } from "./telling.mjs";

// Programs stand outside of the folder where their packages are.
const require = createRequire(path.join(process.env.CLIENT_HOME, "package.json"));
const { default: OpenAI } = await import(pathToFileURL(require.resolve("openai")).href);

const home = path.join(process.env.CLIENT_HOME, "node_modules", "openai", "package.json");
line({ client: "openai (JavaScript)", version: JSON.parse(readFileSync(home)).version, transport: "fetch" });
const api = new OpenAI({ apiKey: TOKEN, baseURL: `${URL_}/v1`, maxRetries: 0 });
const model = process.env.CLIENT_MODEL;
const messages = [{ role: "user", content: "one" }, { role: "assistant", content: "a" }, { role: "user", content: "grüße 你好" }];
const said = "You said: grüße 你好";

if (process.env.CLIENT_BREAKS) {
  await call("chat.completions.create (a stream that breaks)", async () => {
    const broken = every(api.chat.completions.create({ model, messages, stream: true }));
    const error = await broken.then(() => null, (failed) => failed);
    holds(error instanceof OpenAI.APIError, error);
    equal(error.code, "stream_error");
  });
  process.exit(0);
}
await call("chat.completions.create", async () => {
  const answer = await api.chat.completions.create({ model, messages });
  equal([answer.choices[0].message.content, answer.model], [said, model]);
});
await call("chat.completions.create (stream, include_usage)", async () => {
  const wanted = { model, messages, stream: true, stream_options: { include_usage: true } };
  const chunks = await every(api.chat.completions.create(wanted));
  equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), said);
  equal([chunks.at(-1).choices, chunks.at(-1).usage.total_tokens], [[], 0]);
});
await call("chat.completions.stream", async () => {
  const stream = api.chat.completions.stream({ model, messages });
  equal((await stream.finalChatCompletion()).choices[0].message.content, said);
});
await call("chat.completions.create (user, x-session-id)", async () => {
  const asked = api.chat.completions.create({ model, messages, user: "alice" });
  const session = (await asked.asResponse()).headers.get("x-session-id");
  const again = api.chat.completions.create({ model, messages }, { headers: { "x-session-id": session } });
  equal((await again.asResponse()).headers.get("x-session-id"), session);
});
await call("chat.completions.create (a session that is no more)", async () => {
  const refused = api.chat.completions.create({ model, messages }, { headers: { "x-session-id": "7" } });
  const error = await refused.then(() => null, (failed) => failed);
  holds(error instanceof OpenAI.NotFoundError, error);
  equal([error.code, error.message.includes("对话不存在")], ["session_not_found", true]);
});
