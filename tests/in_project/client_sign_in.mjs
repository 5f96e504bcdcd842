// The TypeScript SDK's OAuth client and a browser: `node client_sign_in.mjs NODE_MODULES URL USER [DOCUMENT_URL]` signs in and
// calls `who`. It registers, or has the URL of a document about itself as its id.

import { pathToFileURL } from 'node:url';
import { signIn } from './user.mjs';

const [modules, url, user, clientMetadataUrl] = process.argv.slice(2);
const entry = pathToFileURL(`${modules}/@modelcontextprotocol/client/dist/index.mjs`);
const { Client, StreamableHTTPClientTransport, UnauthorizedError } = await import(entry);

const CALLBACK = 'http://127.0.0.1:1/callback';
const kept = {};
let answer;

const authProvider = {
  redirectUrl: CALLBACK,
  clientMetadata: { redirect_uris: [CALLBACK], client_name: 'A client', token_endpoint_auth_method: 'client_secret_basic' },
  ...(clientMetadataUrl ? { clientMetadataUrl } : {}),
  state: () => 'the state',
  clientInformation: () => kept.client,
  saveClientInformation: (client) => { kept.client = client; },
  tokens: () => kept.tokens,
  saveTokens: (tokens) => { kept.tokens = tokens; },
  codeVerifier: () => kept.verifier,
  saveCodeVerifier: (verifier) => { kept.verifier = verifier; },
  redirectToAuthorization: async (target) => { answer = await signIn(target, user, CALLBACK); },
};

const transport = () => new StreamableHTTPClientTransport(new URL(url), { authProvider });
const first = transport();
try {
  await new Client({ name: 'test', version: '1' }).connect(first);
  throw new Error('no sign-in was demanded');
} catch (error) {
  if (!(error instanceof UnauthorizedError)) throw error;
}
await first.finishAuth(answer);
const client = new Client({ name: 'test', version: '1' });
await client.connect(transport());
const result = await client.callTool({ name: 'who', arguments: {} });
console.log(JSON.stringify({ who: result.structuredContent, client: kept.client?.client_id ?? clientMetadataUrl }));
await client.close();
process.exit(0);
