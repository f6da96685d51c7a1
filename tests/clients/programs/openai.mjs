// openai for JavaScript: chat, streams, tools, numbers, responses, files, batches, pictures and sounds in forms, models, errors.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { MODEL, TOKEN, URL_, call, equal, every, holds, line } from "./telling.mjs";

// Programs stand outside of the folder where their packages are.
const require = createRequire(path.join(process.env.CLIENT_HOME, "package.json"));
const { default: OpenAI, toFile } = await import(pathToFileURL(require.resolve("openai")).href);

const home = path.join(process.env.CLIENT_HOME, "node_modules", "openai", "package.json");
line({ client: "openai (JavaScript)", version: JSON.parse(readFileSync(home)).version, transport: "fetch" });
const api = new OpenAI({ apiKey: TOKEN, baseURL: `${URL_}/v1`, organization: "org-of-the-client" });
const model = "oa/gpt-4o-mini";
const messages = [{ role: "user", content: "grüße 你好" }];
const said = "You said: grüße 你好";
const tools = ["look", "hear"].map((name) => ({ type: "function", function: { name, parameters: { type: "object" } } }));
const text = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");

async function refused(promise, kind) {
  try {
    await promise;
  } catch (failed) {
    if (failed instanceof kind) return failed;
    throw failed;
  }
  throw new Error("it was not refused");
}

for (const [name, named] of [["provider/model", model], ["model", "gpt-4o-mini"], ["alias", "fast"]]) {
  await call(`chat.completions.create (${name})`, async () => {
    const answer = await api.chat.completions.create({ model: named, messages });
    equal([answer.choices[0].message.content, answer.model], [said, "gpt-4o-mini"]);
    holds(answer._request_id);
  });
}
await call("chat.completions.create (n=2)", async () => {
  const answer = await api.chat.completions.create({ model, messages, n: 2 });
  equal(answer.choices.map((each) => each.message.content), [said, said]);
});
await call("chat.completions.create (stream, include_usage)", async () => {
  const wanted = { model, messages, stream: true, stream_options: { include_usage: true } };
  const chunks = await every(api.chat.completions.create(wanted));
  equal(text(chunks), said);
  holds(chunks.at(-1).usage.total_tokens > 0, chunks.at(-1));
});
await call("chat.completions.stream", async () => {
  const stream = api.chat.completions.stream({ model, messages });
  equal((await stream.finalChatCompletion()).choices[0].message.content, said);
});
await call("chat.completions.create (tools)", async () => {
  const [{ message }] = (await api.chat.completions.create({ model, messages, tools })).choices;
  const [asked] = message.tool_calls;
  equal([asked.function.name, JSON.parse(asked.function.arguments)], ["look", { said: messages[0].content }]);
  const talk = [...messages, message, { role: "tool", tool_call_id: asked.id, content: "a bird" }];
  const answer = await api.chat.completions.create({ model, messages: talk, tools });
  equal(answer.choices[0].message.content, "You said: a bird");
});
await call("chat.completions.runTools (stream)", async () => {
  const look = { name: "look", parse: JSON.parse, function: async () => "a fish", parameters: { type: "object" } };
  const tool = { type: "function", function: look };
  const runner = api.chat.completions.runTools({ model, messages, tools: [tool], stream: true });
  equal(await runner.finalContent(), "You said: a fish");
});
await call("embeddings.create", async () => {
  const answer = await api.embeddings.create({ model: "oa/text-embedding-3-small", input: ["a", "b"] });
  equal(answer.data.map((each) => each.embedding.length), [1536, 1536]);
});
await call("moderations.create", async () => {
  const answer = await api.moderations.create({ input: ["peace", "violence"] });
  equal(answer.results.map((each) => each.flagged), [false, true]);
});

const first = await api.responses.create({ model, input: "one" });
await call("responses.create", async () => equal([first.output_text, first.status], ["You said: one", "completed"]));
await call("responses.create (stream)", async () => {
  const events = await every(api.responses.create({ model, input: "hello", stream: true }));
  const pieces = events.filter((each) => each.type === "response.output_text.delta").map((each) => each.delta);
  equal([pieces.join(""), events.at(-1).type], ["You said: hello", "response.completed"]);
});
await call("responses.create (previous_response_id)", async () => {
  for (let n = 0; n < 3; n += 1) {
    const answer = await api.responses.create({ model, input: "two", previous_response_id: first.id });
    equal(answer.previous_response_id, first.id);
  }
});
await call("responses.retrieve, delete", async () => {
  equal((await api.responses.retrieve(first.id)).output_text, "You said: one");
  await api.responses.delete(first.id);
});

const made = [];
await call("files.create", async () => {
  for (let n = 0; n < 12; n += 1) {
    const file = await toFile(Buffer.alloc(n, "x"), `${n}.txt`);
    const headers = { "X-Session-Id": `files-${n}` };
    made.push(await api.files.create({ file, purpose: "user_data" }, { headers }));
  }
  equal(made.map((each) => each.bytes), made.map((_, n) => n));
});
await call("files.list (pages over several keys)", async () => {
  const ids = (await every(api.files.list({ limit: 5 }))).map((each) => each.id);
  equal(ids.toSorted(), made.map((each) => each.id).toSorted());
});
await call("files.retrieve, content", async () => {
  equal((await api.files.retrieve(made[3].id)).filename, "3.txt");
  equal(await (await api.files.content(made[3].id)).text(), "xxx");
});
await call("files.delete", async () => {
  for (const each of made) holds((await api.files.delete(each.id)).deleted);
  equal(await every(api.files.list()), []);
});
await call("batches.create, retrieve, files.content", async () => {
  const body = { model: "gpt-4o-mini", messages };
  const request = { custom_id: "1", method: "POST", url: "/v1/chat/completions", body };
  const file = await api.files.create({ file: await toFile(Buffer.from(JSON.stringify(request)), "b.jsonl"), purpose: "batch" });
  const wanted = { input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h" };
  const done = await api.batches.retrieve((await api.batches.create(wanted)).id);
  const answer = JSON.parse(await (await api.files.content(done.output_file_id)).text());
  equal(answer.response.body.choices[0].message.content, said);
});

let picture;
await call("images.generate", async () => {
  const answer = await api.images.generate({ model: "oa/gpt-image-1", prompt: "a bird" });
  picture = Buffer.from(answer.data[0].b64_json, "base64");
  equal(picture.subarray(1, 4).toString(), "PNG");
});
await call("images.edit (multipart)", async () => {
  const image = await toFile(picture, "a.png", { type: "image/png" });
  holds((await api.images.edit({ model: "oa/gpt-image-1", image, prompt: "bluer" })).data[0].b64_json);
});
await call("audio.speech.create", async () => {
  const answer = await api.audio.speech.create({ model: "oa/tts-1", voice: "alloy", input: "hello" });
  equal(Buffer.from(await answer.arrayBuffer()).subarray(0, 3).toString(), "ID3");
});
await call("audio.transcriptions.create (multipart)", async () => {
  const file = await toFile(Buffer.from("sound"), "a.mp3", { type: "audio/mpeg" });
  const heard = await api.audio.transcriptions.create({ model: "oa/whisper-1", file });
  holds(heard.text.startsWith("You sent: a.mp3, 5 bytes"), heard);
});
await call("models.list, retrieve (with a slash)", async () => {
  const names = (await every(api.models.list())).map((each) => each.id);
  holds([model, "gpt-4o-mini", "fast", `gemini/${MODEL}`].every((each) => names.includes(each)), names);
  equal((await api.models.retrieve(model)).id, model);
});

await call("chat.completions.create (gemini)", async () => {
  const answer = await api.chat.completions.create({ model: `gemini/${MODEL}`, messages });
  equal([answer.choices[0].message.content, answer.model], [said, MODEL]);
});
await call("an error of Google's (400)", async () => {
  const wanted = api.chat.completions.create({ model: `gemini/${MODEL}`, messages, n: 99 });
  const error = await refused(wanted, OpenAI.BadRequestError);
  holds(error.message.includes("candidate_count"), error.message);
});
await call("an unknown model (404)", async () => {
  const error = await refused(api.chat.completions.create({ model: "oa/gpt-0", messages }), OpenAI.NotFoundError);
  equal([error.code, error.message.includes("模型 oa/gpt-0 不存在")], ["model_not_found", true]);
});
await call("a wrong token (401)", async () => {
  const nobody = new OpenAI({ apiKey: "token-of-nobody", baseURL: `${URL_}/v1` });
  equal((await refused(nobody.models.list(), OpenAI.AuthenticationError)).code, "invalid_api_key");
});
await call("all keys at rest (429, retry-after)", async () => {
  const wanted = api.chat.completions.create({ model: "busy/always-busy", messages }, { maxRetries: 0 });
  const error = await refused(wanted, OpenAI.RateLimitError);
  equal(error.code, "keys_resting");
  holds(Number(error.headers.get("retry-after")) >= 20, [...error.headers]);
});
