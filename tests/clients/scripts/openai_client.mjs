// OpenAI's client for Node.

import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { BASE_URL, COLOURS, ENDLESS, IMAGE_URL, KEY, MODEL, QUESTION, RESULT, ROOM, SEEN, TOOL } from "./common.mjs";
import { cancelled, expect, main } from "./common.mjs";

const client = new OpenAI({ baseURL: BASE_URL, apiKey: KEY, maxRetries: 0 });
const content = [
  { type: "text", text: QUESTION },
  { type: "image_url", image_url: { url: IMAGE_URL, detail: "auto" } },
];
const request = { model: MODEL, messages: [{ role: "user", content }], max_completion_tokens: ROOM };
const Answer = z.object({ colour: z.enum(COLOURS), count: z.literal(2) });
const Shapes = z.object({ shapes: z.array(Answer).min(1).max(2), note: z.enum(["few", "many"]).nullable() });
const Look = z.object({ colour: z.enum(COLOURS) });

async function image() {
  const stream = await client.chat.completions.create({
    ...request,
    stream: true,
    stream_options: { include_usage: true },
    temperature: 0,
  });
  let text = "";
  let usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  expect(text.toLowerCase().includes(SEEN) && usage.completion_tokens > 3, { text, usage });
}

async function schema() {
  for (const form of [Answer, Shapes]) {
    const done = await client.chat.completions.parse({ ...request, response_format: zodResponseFormat(form, "form") });
    expect(form.safeParse(done.choices[0].message.parsed).success, done);
  }
}

async function tools() {
  const tool = zodFunction({ name: TOOL, parameters: Look, description: "Look up how many shapes there are." });
  for (const tool_choice of ["required", { type: "function", function: { name: TOOL } }]) {
    const first = await client.chat.completions.parse({ ...request, tools: [tool], tool_choice });
    const { message } = first.choices[0];
    const call = message.tool_calls[0];
    expect(COLOURS.includes(call.function.parsed_arguments.colour), first);
    const result = { role: "tool", tool_call_id: call.id, content: RESULT };
    const messages = [...request.messages, message, result];
    const last = await client.chat.completions.create({ ...request, messages, tools: [tool], tool_choice: "none" });
    expect(last.choices[0].message.content, last);
  }
}

async function cancel() {
  const endless = { ...request, max_completion_tokens: null, stream: true, structured_outputs: ENDLESS };
  const stream = await client.chat.completions.create(endless);
  await cancelled(stream, () => stream.controller.abort());
}

await main("openai", { image, schema, tools, cancel });
