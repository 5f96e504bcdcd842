// The TypeScript SDK's client: `node client_progress.mjs NODE_MODULES URL TOKEN [SECONDS]` prints the progress of a call.
// With SECONDS it also calls a tool that is silent for so long.

import { pathToFileURL } from 'node:url';

const [modules, url, token, seconds] = process.argv.slice(2);
const entry = pathToFileURL(`${modules}/@modelcontextprotocol/client/dist/index.mjs`);
const { Client, StreamableHTTPClientTransport } = await import(entry);

const client = new Client({ name: 'a client', version: '1' });
const requestInit = { headers: { authorization: `Bearer ${token}` } };
await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit }));
const gate = { gate: String(process.pid) };
const seen = [];
let opening;
const onprogress = ({ progress, message }) => {
  seen.push([progress, message]);
  if (progress === 1) opening = client.callTool({ name: 'open_gate', arguments: gate });
};
const result = await client.callTool({ name: 'progress', arguments: gate }, { onprogress });
await opening;
if (seconds) {
  const silent = await client.callTool({ name: 'silent', arguments: { seconds: Number(seconds) } });
  if (silent.content[0].text !== 'after silence') throw new Error(JSON.stringify(silent));
}
console.log(JSON.stringify({ seen, text: result.content[0].text }));
await client.close();
