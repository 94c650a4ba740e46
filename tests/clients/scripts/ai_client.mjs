// Vercel's AI SDK, with its provider for OpenAI-compatible servers.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, streamText, tool, stepCountIs } from "ai";
import { z } from "zod";
import { BASE_URL, COLOURS, ENDLESS, KEY, MODEL, PICTURE, QUESTION, RESULT, ROOM, SEEN, TOOL } from "./common.mjs";
import { cancelled, expect, main } from "./common.mjs";

const provider = createOpenAICompatible({
  name: "triptych",
  baseURL: BASE_URL,
  apiKey: KEY,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = provider(MODEL);
const content = [
  { type: "text", text: QUESTION },
  { type: "image", image: PICTURE, mediaType: "image/png" },
];
const messages = [{ role: "user", content }];
const request = { model, messages, maxRetries: 0, maxOutputTokens: ROOM };
const Answer = z.object({ colour: z.enum(COLOURS), count: z.literal(2) });
const Shapes = z.object({ shapes: z.array(Answer).min(1).max(2), note: z.enum(["few", "many"]).nullable() });
const Look = z.object({ colour: z.enum(COLOURS) });

async function image() {
  const result = streamText({ ...request, system: "You describe pictures.", temperature: 0 });
  let text = "";
  for await (const piece of result.textStream) text += piece;
  expect(text.length > 0 && (await result.usage).outputTokens > 3, text);
  const plain = streamText({ ...request, temperature: 0 });
  expect((await plain.text).toLowerCase().includes(SEEN), await plain.text);
}

async function schema() {
  for (const form of [Answer, Shapes]) {
    const { output } = await generateText({ ...request, output: Output.object({ schema: form }) });
    expect(form.safeParse(output).success, output);
    const streamed = streamText({ ...request, output: Output.object({ schema: form }) });
    expect(form.safeParse(await streamed.output).success, await streamed.output);
  }
}

async function tools() {
  const description = "Look up how many shapes there are.";
  for (const toolChoice of ["required", { type: "tool", toolName: TOOL }]) {
    const asked = [];
    const look = tool({
      description,
      inputSchema: Look,
      execute: async ({ colour }) => {
        asked.push(colour);
        return RESULT;
      },
    });
    const result = await generateText({
      ...request,
      tools: { [TOOL]: look },
      toolChoice,
      stopWhen: stepCountIs(2),
      prepareStep: ({ stepNumber }) => (stepNumber ? { toolChoice: "none" } : {}),
    });
    expect(asked.length && COLOURS.includes(asked[0]) && result.text, result.steps);
  }
}

async function cancel() {
  const leave = new AbortController();
  const providerOptions = { triptych: { structured_outputs: ENDLESS } };
  const { textStream } = streamText({ model, messages, maxRetries: 0, providerOptions, abortSignal: leave.signal });
  await cancelled(textStream, () => leave.abort());
}

await main("ai", { image, schema, tools, cancel });
