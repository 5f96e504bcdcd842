// The TypeScript SDK and nothing else, as its documentation serves plain Node.js: JSON to clients of 2026-07-28, and to
// those before them a stream, since its stateless way for them has no other.
import { createServer } from "node:http";
import { localhostHostValidation, localhostOriginValidation, toNodeHandler } from "@modelcontextprotocol/node";
import { McpServer, createMcpHandler } from "@modelcontextprotocol/server";
import { z } from "zod";

const number = z.number().int();

function server() {
  const made = new McpServer({ name: "peer", version: "1.0.0" });
  const description = "The sum of two numbers.";
  made.registerTool("add", { description, inputSchema: z.object({ a: number, b: number }) }, ({ a, b }) => ({
    content: [{ type: "text", text: String(a + b) }],
  }));
  return made;
}

const [host, origin] = [localhostHostValidation(), localhostOriginValidation()];
const handler = toNodeHandler(createMcpHandler(server, { responseMode: "json" }));
createServer((request, response) => host(request, response) && origin(request, response) && handler(request, response))
  .listen(Number(process.env.PORT), "127.0.0.1");
