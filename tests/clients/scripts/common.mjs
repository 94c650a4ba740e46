// What the scripts of the clients for Node share: see common.py, whose counterpart it is.

import { readFileSync } from "node:fs";

export const BASE_URL = process.env.CLIENTS_BASE_URL;
export const MODEL = process.env.CLIENTS_MODEL;
export const KEY = process.env.CLIENTS_KEY;
export const PICTURE = readFileSync(process.env.CLIENTS_PICTURE);
export const IMAGE_URL = `data:image/png;base64,${PICTURE.toString("base64")}`;
export const QUESTION = "What is in the picture?";
export const SEEN = "a red circle, a blue square and a yellow star"; // is in it
export const COLOURS = ["red", "blue", "yellow"];
export const TOOL = "look_up";
export const RESULT = "There are two shapes.";
// Tokens for an answer in JSON: the demo model writes long numbers and strings where the schema allows them.
export const ROOM = 1500;
// vLLM's `structured_outputs`: an answer that goes on until it is cancelled.
export const ENDLESS = { regex: "[ab]{8000}" };

const PATIENCE = 60_000;

/** Fail where it does not hold; says what was seen. */
export function expect(holds, seen) {
  if (!holds) throw new Error(`saw ${JSON.stringify(seen)}`);
}

/** Requests inside the decoder. */
export async function running() {
  const text = await (await fetch(process.env.CLIENTS_METRICS)).text();
  return [...text.matchAll(/^triptych_requests(?:\{.*\})? (\S+)$/gm)].reduce((sum, match) => sum + Number(match[1]), 0);
}

/** Take some pieces of an endless answer, leave, and wait until the decoder has no request left. */
export async function cancelled(stream, leave) {
  const pieces = stream[Symbol.asyncIterator]();
  for (let i = 0; i < 3; i++) await pieces.next();
  const during = await running();
  expect(during === 1, `${during} running in the middle of the answer`);
  leave();
  const since = Date.now();
  let count;
  while ((count = await running()) && Date.now() - since < PATIENCE) await new Promise((done) => setTimeout(done, 50));
  expect(count === 0, `${count} running after the client left`);
}

/** Run the checks and print a line of JSON for each, with `check`, `ok` and `detail`. */
export async function main(name, checks) {
  const { version } = JSON.parse(readFileSync(`node_modules/${name}/package.json`));
  console.log(JSON.stringify({ version }));
  for (const [check, run] of Object.entries(checks)) {
    try {
      await run();
      console.log(JSON.stringify({ check, ok: true, detail: "" }));
    } catch (error) {
      console.error(error);
      console.log(JSON.stringify({ check, ok: false, detail: `${error.name}: ${error.message}`.slice(0, 400) }));
    }
  }
}
