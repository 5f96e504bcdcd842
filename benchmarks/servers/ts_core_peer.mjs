// mcp-ts-core with its defaults, which log each call; stateless. It has no protocol of 2026-07-28.
Object.assign(process.env, {
  MCP_TRANSPORT_TYPE: "http",
  MCP_SESSION_MODE: "stateless",
  MCP_HTTP_PORT: process.env.PORT,
});
const { createApp, tool, z } = await import("@cyanheads/mcp-ts-core");

const add = tool("add", {
  description: "The sum of two numbers.",
  input: z.object({
    a: z.number().int().describe("The first number"),
    b: z.number().int().describe("The second number"),
  }),
  output: z.object({ sum: z.number().int().describe("The sum") }),
  handler: ({ a, b }) => ({ sum: a + b }),
  format: ({ sum }) => [{ type: "text", text: String(sum) }],
});
await createApp({ name: "peer", version: "1.0.0", tools: [add] });
