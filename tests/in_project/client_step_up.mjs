// The TypeScript SDK's OAuth client, which gets a further scope when a tool needs one:
//
//     node client_step_up.mjs NODE_MODULES URL USER TOOL ARGUMENTS TOOL ARGUMENTS ...
//
// calls the tools one after the other and prints each text with the scopes of the token.

import { pathToFileURL } from 'node:url';
import { signIn } from './user.mjs';

const [modules, url, user, ...calls] = process.argv.slice(2);
const entry = pathToFileURL(`${modules}/@modelcontextprotocol/client/dist/index.mjs`);
const { Client, StreamableHTTPClientTransport, UnauthorizedError } = await import(entry);

const CALLBACK = 'http://127.0.0.1:1/callback';
const kept = {};
const asked = [];
let answer;

const authProvider = {
  redirectUrl: CALLBACK,
  clientMetadata: { redirect_uris: [CALLBACK], token_endpoint_auth_method: 'client_secret_basic' },
  clientInformation: () => ({ client_id: 'connector', client_secret: 'secret of connector' }),
  tokens: () => kept.tokens,
  saveTokens: (tokens) => { kept.tokens = tokens; },
  codeVerifier: () => kept.verifier,
  saveCodeVerifier: (verifier) => { kept.verifier = verifier; },
  redirectToAuthorization: async (target) => {
    asked.push(new URL(target).searchParams.get('scope'));
    answer = await signIn(target, user, CALLBACK);
  },
};

async function signedIn(attempt) {
  const transport = new StreamableHTTPClientTransport(new URL(url), { authProvider });
  const client = new Client({ name: 'test', version: '1' });
  try {
    await client.connect(transport);
    const result = await attempt(client);
    await client.close();
    return result;
  } catch (error) {
    if (!(error instanceof UnauthorizedError)) throw error;
    await transport.finishAuth(answer);
    return signedIn(attempt);
  }
}

const texts = [];
for (let index = 0; index < calls.length; index += 2) {
  const request = { name: calls[index], arguments: JSON.parse(calls[index + 1]) };
  const result = await signedIn((client) => client.callTool(request));
  texts.push(result.content.map((block) => block.text).join('\n'));
}
console.log(JSON.stringify({ asked, texts }));
process.exit(0);
