// The TypeScript SDK's client: `node client_progress.mjs NODE_MODULES URL TOKEN` prints the progress of a call.

import { pathToFileURL } from 'node:url';

const [modules, url, token] = process.argv.slice(2);
const entry = pathToFileURL(`${modules}/@modelcontextprotocol/client/dist/index.mjs`);
const { Client, StreamableHTTPClientTransport } = await import(entry);

const client = new Client({ name: 'a client', version: '1' });
const requestInit = { headers: { authorization: `Bearer ${token}` } };
await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit }));
const seen = [];
let opening;
const onprogress = ({ progress, message }) => {
  seen.push([progress, message]);
  if (progress === 1) opening = client.callTool({ name: 'open_gate', arguments: {} });
};
const result = await client.callTool({ name: 'progress', arguments: {} }, { onprogress });
await opening;
console.log(JSON.stringify({ seen, text: result.content[0].text }));
await client.close();
