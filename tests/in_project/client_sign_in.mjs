// The TypeScript SDK's OAuth client and a browser: `node client_sign_in.mjs NODE_MODULES URL USER [DOCUMENT_URL]` signs in and
// calls `who`. It registers, or has the URL of a document about itself as its id.

import { pathToFileURL } from 'node:url';

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
  redirectToAuthorization: async (target) => { answer = await signIn(target); },
};

const unescaped = (text) => text.replaceAll('&amp;', '&').replaceAll('&quot;', '"').replaceAll('&#x27;', "'");

// Whoever sits before the browser: presses the first button of each page, and signs in with a name.
async function signIn(target) {
  const cookies = {};
  let method = 'GET';
  let body;
  for (;;) {
    if (String(target).startsWith(CALLBACK)) return new URL(target).searchParams;
    const { host } = new URL(target);
    cookies[host] ??= {};
    const cookie = Object.entries(cookies[host]).map(([name, value]) => `${name}=${value}`).join('; ');
    const response = await fetch(target, { method, body, redirect: 'manual', headers: { cookie } });
    for (const header of response.headers.getSetCookie()) {
      const [pair] = header.split(';');
      cookies[host][pair.slice(0, pair.indexOf('='))] = pair.slice(pair.indexOf('=') + 1);
    }
    const page = await response.text();
    const onward = response.headers.get('location') ?? unescaped(/http-equiv="refresh" content="0;url=([^"]*)"/.exec(page)?.[1] ?? '');
    if (onward) {
      [target, method, body] = [new URL(onward, target), 'GET', undefined];
      continue;
    }
    if (response.status !== 200) throw new Error(`${response.status} ${page}`);
    const fields = new URLSearchParams([...page.matchAll(/name="([^"]+)" value="([^"]*)"/g)].map(([, name, value]) => [name, value]));
    if (page.includes('name="login"')) for (const [name, value] of [['login', user], ['password', 'any']]) fields.set(name, value);
    if (page.includes('name="decision"')) fields.set('decision', 'allow');
    [target, method, body] = [new URL(unescaped(/<form[^>]* action="([^"]*)"/.exec(page)[1]), target), 'POST', fields];
  }
}

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
