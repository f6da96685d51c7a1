// @google/genai, every call over plain HTTP.

import { readFileSync, writeFileSync, mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { Absent, MODEL, URL_, call, equal, every, holds, line } from "./telling.mjs";

// Programs stand outside of the folder where their packages are.
const packages = path.join(process.env.CLIENT_HOME, "node_modules", "@google", "genai");
const manifest = JSON.parse(readFileSync(path.join(packages, "package.json")));
const { GoogleGenAI } = await import(pathToFileURL(path.join(packages, "dist", "node", "index.mjs")).href);
line({ client: "@google/genai (JavaScript)", version: manifest.version, transport: "fetch" });

const ai = new GoogleGenAI({ apiKey: "any-text", httpOptions: { baseUrl: URL_ } });
// A store and what is imported into it must be of one key, so they are of one session, by the base URL's prefix.
const session = new GoogleGenAI({ apiKey: "any-text", httpOptions: { baseUrl: `${URL_}/s/stores` } });
const folder = mkdtempSync(path.join(os.tmpdir(), "clients-"));
const BIG = Buffer.alloc(18_000_000, "balancer ");
const text = (data, mimeType = "text/plain") => new Blob([data], { type: mimeType });
const timesFour = async (body) => {
  for (let turn = 0; turn < 4; turn++) await body();
};

async function models() {
  await call("models.generateContent", async () => {
    equal((await ai.models.generateContent({ model: MODEL, contents: "hello" })).text, "You said: hello");
  });
  await call("models.generateContentStream", async () => {
    const pieces = await every(ai.models.generateContentStream({ model: MODEL, contents: "hi" }));
    equal(pieces.map((each) => each.text ?? "").join(""), "You said: hi");
    equal(pieces.length, 3);
  });
  await call("models.countTokens", async () => {
    equal((await ai.models.countTokens({ model: MODEL, contents: "hello" })).totalTokens, 2);
  });
  await call("models.embedContent", async () => {
    const embedded = await ai.models.embedContent({ model: "gemini-embedding-001", contents: ["x", "y"] });
    equal(embedded.embeddings.map((each) => each.values.length), [8, 8]);
  });
  await call("models.list", async () => {
    holds((await every(ai.models.list({ config: { pageSize: 4 } }))).length > 10);
  });
  await call("models.get", async () => equal((await ai.models.get({ model: MODEL })).name, `models/${MODEL}`));
  await call("models.generateImages", async () => {
    const made = await ai.models.generateImages({ model: "imagen-4.0-generate-001", prompt: "x" });
    holds(made.generatedImages[0].image.imageBytes);
  });
  let operation;
  await call("models.generateVideos", async () => {
    operation = await ai.models.generateVideos({ model: "veo-3.0-generate-001", prompt: "x" });
    holds(operation.name.startsWith("models/veo-3.0-generate-001/operations/"), operation);
  });
  await call("operations.getVideosOperation", async () => {
    if (operation === undefined) throw new Absent();
    const done = await ai.operations.getVideosOperation({ operation });
    holds(done.done, done);
  });
  await call("models.computeTokens", () => ai.models.computeTokens({ model: MODEL, contents: "x" }));
}

async function chats() {
  const chat = ai.chats.create({ model: MODEL });
  await call("chats.sendMessage", async () => {
    for (const said of ["one", "two", "three", "four"]) {
      equal((await chat.sendMessage({ message: said })).text, `You said: ${said}`);
    }
  });
  await call("chats.sendMessageStream", async () => {
    const pieces = await every(chat.sendMessageStream({ message: "five" }));
    equal(pieces.map((each) => each.text ?? "").join(""), "You said: five");
  });
}

async function files() {
  let big, small;
  await call("files.upload (three chunks)", async () => {
    big = await ai.files.upload({ file: text(BIG, "video/mp4"), config: { displayName: "big" } });
    equal([Number(big.sizeBytes), big.displayName], [BIG.length, "big"]);
    holds(big.uri.startsWith("https://generativelanguage.googleapis.com/"), big.uri);
  });
  await call("files.upload (small, from a path)", async () => {
    const place = path.join(folder, "small.txt");
    writeFileSync(place, "small");
    small = await ai.files.upload({ file: place, config: { mimeType: "text/plain" } });
    equal(Number(small.sizeBytes), 5);
  });
  await call("files.get", async () => {
    for (const file of [big, small]) equal((await ai.files.get({ name: file.name })).name, file.name);
  });
  await call("files.list", async () => {
    const names = (await every(ai.files.list({ config: { pageSize: 1 } }))).map((each) => each.name);
    holds(names.includes(big.name) && names.includes(small.name), names);
  });
  await call("files.download", async () => {
    const downloadPath = path.join(folder, "big");
    await ai.files.download({ file: big.name, downloadPath });
    let got = readFileSync(downloadPath);
    for (let wait = 0; wait < 100 && got.length < BIG.length; wait++) {
      await new Promise((done) => setTimeout(done, 20)); // some versions return before the file is whole
      got = readFileSync(downloadPath);
    }
    holds(got.equals(BIG), got.length);
  });
  await call("models.generateContent with two files", () =>
    timesFour(async () => {
      const parts = [big, small].map((file) => ({ fileData: { fileUri: file.uri, mimeType: file.mimeType } }));
      const answer = await ai.models.generateContent({ model: MODEL, contents: [...parts, { text: "look" }] });
      equal(answer.text, "You said: look");
    }),
  );
  await call("files.delete", async () => {
    for (const file of [big, small]) await ai.files.delete({ name: file.name });
    const gone = await ai.files.get({ name: big.name }).then(
      () => 200,
      (refused) => refused.status,
    );
    holds(gone === 403 || gone === 404, gone);
  });
}

async function caches() {
  let cache;
  await call("caches.create", async () => {
    cache = await ai.caches.create({ model: MODEL, config: { contents: "x".repeat(100), ttl: "300s", displayName: "c" } });
  });
  await call("caches.get", async () => equal((await ai.caches.get({ name: cache.name })).displayName, "c"));
  await call("caches.list", () => every(ai.caches.list()));
  await call("caches.update", async () => {
    const updated = await ai.caches.update({ name: cache.name, config: { ttl: "600s" } });
    holds(updated.expireTime > cache.expireTime, updated);
  });
  await call("models.generateContent with a cache", () =>
    timesFour(async () => {
      const config = { cachedContent: cache.name };
      const used = await ai.models.generateContent({ model: MODEL, contents: "hi", config });
      equal(used.usageMetadata.cachedContentTokenCount, 1024);
    }),
  );
  await call("caches.delete", () => ai.caches.delete({ name: cache.name }));
}

async function batches() {
  let inline, queued;
  await call("batches.create (inline)", async () => {
    inline = await ai.batches.create({ model: MODEL, src: [{ contents: [{ role: "user", parts: [{ text: "hi" }] }] }] });
  });
  await call("batches.get", async () => {
    const done = await ai.batches.get({ name: inline.name });
    equal(done.state, "JOB_STATE_SUCCEEDED");
    equal(done.dest.inlinedResponses[0].response.candidates[0].content.parts[0].text, "You said: hi");
  });
  await call("batches.create (from a file)", async () => {
    const request = JSON.stringify({ key: "1", request: { contents: [{ parts: [{ text: "from a file" }] }] } });
    const lines = await ai.files.upload({ file: text(request, "application/jsonl") });
    queued = await ai.batches.create({ model: MODEL, src: lines.name });
  });
  await call("files.download (result of a batch)", async () => {
    const finished = await ai.batches.get({ name: queued.name });
    const downloadPath = path.join(folder, "result");
    await ai.files.download({ file: finished.dest.fileName, downloadPath });
    await new Promise((done) => setTimeout(done, 50));
    holds(readFileSync(downloadPath, "utf8").includes("You said: from a file"));
  });
  await call("batches.createEmbeddings", async () => {
    const src = { inlinedRequests: { contents: ["x"] } };
    const made = await ai.batches.createEmbeddings({ model: "gemini-embedding-001", src });
    equal((await ai.batches.get({ name: made.name })).state, "JOB_STATE_SUCCEEDED");
  });
  await call("batches.list", () => every(ai.batches.list()));
  await call("batches.cancel", () => ai.batches.cancel({ name: queued.name }));
  await call("batches.delete", () => ai.batches.delete({ name: queued.name }));
}

async function stores() {
  const group = session.fileSearchStores;
  let store, uploaded, imported, document;
  await call("fileSearchStores.create", async () => {
    store = await group.create({ config: { displayName: "s" } });
  });
  await call("fileSearchStores.get", async () => equal((await group.get({ name: store.name })).displayName, "s"));
  await call("fileSearchStores.list", () => every(group.list()));
  await call("fileSearchStores.uploadToFileSearchStore", async () => {
    uploaded = await group.uploadToFileSearchStore({ fileSearchStoreName: store.name, file: text("words") });
  });
  await call("operations.get (upload)", async () => {
    const done = await session.operations.get({ operation: uploaded });
    holds(done.done, done);
    document = (done.response ?? uploaded.response).documentName;
  });
  await call("fileSearchStores.importFile", async () => {
    const file = await session.files.upload({ file: text("more") });
    imported = await group.importFile({ fileSearchStoreName: store.name, fileName: file.name });
  });
  await call("operations.get (import)", async () => {
    holds((await session.operations.get({ operation: imported })).done);
  });
  await call("fileSearchStores.documents.list", async () => {
    equal((await every(group.documents.list({ parent: store.name }))).length, 2);
  });
  await call("fileSearchStores.documents.get", async () => {
    equal((await group.documents.get({ name: document })).name, document);
  });
  await call("fileSearchStores.downloadMedia", async () => {
    equal(Buffer.from(await group.downloadMedia(document.replace("/documents/", "/media/"))).toString(), "words");
  });
  await call("models.generateContent with a store", () =>
    timesFour(async () => {
      const config = { tools: [{ fileSearch: { fileSearchStoreNames: [store.name] } }] };
      equal((await session.models.generateContent({ model: MODEL, contents: "hi", config })).text, "You said: hi");
    }),
  );
  await call("fileSearchStores.documents.delete", () => group.documents.delete({ name: document, config: { force: true } }));
  await call("fileSearchStores.delete", () => group.delete({ name: store.name, config: { force: true } }));
}

async function tunings() {
  let job;
  await call("tunings.tune", async () => {
    const trainingDataset = { examples: [{ textInput: "1", output: "2" }] };
    job = await ai.tunings.tune({ baseModel: "models/gemini-1.5-flash", trainingDataset });
    holds(job.name.startsWith("tunedModels/"), job);
  });
  await call("tunings.get", async () => equal((await ai.tunings.get({ name: job.name })).name, job.name));
  await call("models.list (tuned)", () => every(ai.models.list({ config: { queryBase: false } })));
  await call("models.generateContent (tuned)", () =>
    timesFour(async () => {
      equal((await ai.models.generateContent({ model: job.name, contents: "hi" })).text, "You said: hi");
    }),
  );
  await call("models.update", async () => {
    equal((await ai.models.update({ model: job.name, config: { displayName: "mine" } })).displayName, "mine");
  });
  await call("tunings.cancel", () => ai.tunings.cancel({ name: job.name }));
  await call("models.delete", () => ai.models.delete({ model: job.name }));
}

async function theRest() {
  await call("authTokens.create", async () => {
    const token = await ai.authTokens.create({ config: { uses: 1, httpOptions: { apiVersion: "v1alpha" } } });
    holds(token.name.startsWith("auth_tokens/"), token);
  });
  await call("an error (404)", async () => {
    const refused = await ai.models.generateContent({ model: "gemini-0", contents: "hi" }).catch((error) => error);
    equal(refused.status, 404);
  });
}

for (const part of [models, chats, files, caches, batches, stores, tunings, theRest]) await part();
rmSync(folder, { recursive: true });
