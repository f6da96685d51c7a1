// How a program in JavaScript tells what came of each call: the lines of telling.py.

export const URL_ = process.env.PROXY_URL;
export const TOKEN = process.env.CLIENT_TOKEN;
export const MODEL = "gemini-2.5-flash";
const ABSENT = /only supported (in|by)|not supported in|only available in|is not supported/;

export class Absent extends Error {}

export function line(said) {
  console.log(JSON.stringify(said));
}

export async function call(name, body) {
  try {
    await body();
    line({ call: name, ok: true, detail: "" });
  } catch (failed) {
    // An answer of the server has a status; what the SDK itself says has none.
    const own = failed.status === undefined && ABSENT.test(failed.message);
    if (failed instanceof Absent || own || /is not a function$/.test(failed.message)) {
      line({ call: name, ok: null, detail: "not in this SDK" });
    } else {
      line({ call: name, ok: false, detail: String(failed.stack ?? failed).slice(0, 1500) });
    }
  }
}

export function equal(got, wanted) {
  if (JSON.stringify(got) !== JSON.stringify(wanted)) {
    throw new Error(`${JSON.stringify(got)} instead of ${JSON.stringify(wanted)}`);
  }
}

export function holds(truth, about = "") {
  if (!truth) throw new Error(`not so: ${JSON.stringify(about)}`);
}

export async function every(answer) {
  const all = [];
  for await (const each of await answer) all.push(each);
  return all;
}
