// An identity provider for the tests: npm's oidc-provider with opaque and JWT access tokens, introspection, revocation,
// and token exchange (RFC 8693) through its hook for grants; users sign in at its development pages.
//
//     node identity_provider.mjs NODE_MODULES PORT KEY_ID [REDIRECT_URI] [RESOURCE]

import { generateKeyPairSync } from 'node:crypto';
import { pathToFileURL } from 'node:url';

const [modules, port, kid, redirectUri, resource] = process.argv.slice(2);
const load = (path) => import(pathToFileURL(`${modules}/${path}`));
const { Provider, errors } = await load('oidc-provider/lib/index.js');
const jose = await load('jose/dist/webapi/index.js');

const issuer = `http://127.0.0.1:${port}`;
const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
const LOGIN = 'urn:example:login'; // stands for the browser: a token of the user that the parameter names
const ACCESS_TOKEN = 'urn:ietf:params:oauth:token-type:access_token';
const FORMATS = { 'https://mcp.example.com/mcp': 'jwt', 'https://mcp.example.com/opaque': 'opaque', 'https://orders.example.com': 'jwt', ...(resource ? { [resource]: 'jwt' } : {}) };

const key = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ format: 'jwk' });
const signing = { ...key, kid, alg: 'ES256', use: 'sig' };
const publicKeys = jose.createLocalJWKSet({ keys: [{ ...signing, d: undefined }] });

const client = (client_id, grant_types) => ({
  client_id, client_secret: `secret of ${client_id}`, grant_types, redirect_uris: [], response_types: [],
  id_token_signed_response_alg: 'ES256',
});
const connector = {
  ...client('connector', ['authorization_code', 'refresh_token']), redirect_uris: [redirectUri], response_types: ['code'],
};
const resourceServer = (resource) => ({
  scope: 'orders:read orders:write orders:refund', audience: resource, accessTokenFormat: FORMATS[resource], accessTokenTTL: 300,
  jwt: { sign: { alg: 'ES256' } },
});

const provider = new Provider(issuer, {
  jwks: { keys: [signing] },
  clients: [
    client('app', [LOGIN, 'client_credentials']), client('mcp-server', [EXCHANGE]), ...(redirectUri ? [connector] : []),
  ],
  scopes: ['openid', 'offline_access', 'orders:read', 'orders:write', 'orders:refund'],
  issueRefreshToken: (ctx, client) => client.grantTypeAllowed('refresh_token'),
  pkce: { required: () => true },
  findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  features: {
    devInteractions: { enabled: Boolean(redirectUri) },
    clientCredentials: { enabled: true },
    introspection: { enabled: true, allowedPolicy: () => true },
    revocation: { enabled: true, allowedPolicy: () => true },
    resourceIndicators: {
      enabled: true,
      defaultResource: (ctx) => (ctx.oidc.client.clientId === 'connector' ? Object.keys(FORMATS)[0] : undefined),
      useGrantedResource: () => true,
      getResourceServerInfo: (ctx, resource) => {
        if (!(resource in FORMATS)) throw new errors.InvalidTarget();
        return resourceServer(resource);
      },
    },
  },
});

async function issue(ctx, user, resource, scope, seconds = 300) {
  const grant = new provider.Grant({ accountId: user, clientId: ctx.oidc.client.clientId });
  grant.addResourceScope(resource, scope);
  const token = new provider.AccessToken({
    accountId: user, client: ctx.oidc.client, grantId: await grant.save(), gty: 'custom', scope, expiresIn: Number(seconds),
  });
  token.resourceServer = new provider.ResourceServer(resource, resourceServer(resource));
  return { access_token: await token.save(), token_type: 'Bearer', expires_in: Number(seconds), scope };
}

provider.registerGrantType(LOGIN, async (ctx) => {
  const { user, resource, scope, seconds } = ctx.oidc.params;
  ctx.body = await issue(ctx, user, resource, scope, seconds);
}, ['user', 'resource', 'scope', 'seconds']);

provider.registerGrantType(EXCHANGE, async (ctx) => {
  const { params } = ctx.oidc;
  // RFC 8693, section 2.1: what a request must have, and may not have.
  for (const name of ['subject_token', 'subject_token_type']) {
    if (!params[name]) throw new errors.InvalidRequest(`${name} is missing`);
  }
  if (params.actor_token_type && !params.actor_token) throw new errors.InvalidRequest('actor_token is missing');
  if (params.subject_token_type !== ACCESS_TOKEN) throw new errors.InvalidRequest('unsupported subject_token_type');
  if ((params.requested_token_type ?? ACCESS_TOKEN) !== ACCESS_TOKEN) throw new errors.InvalidRequest('unsupported type');
  if (!(params.resource in FORMATS)) throw new errors.InvalidTarget();
  const audience = Object.keys(FORMATS).filter((name) => name !== params.resource);
  const { payload } = await jose.jwtVerify(params.subject_token, publicKeys, { issuer, audience }).catch(() => {
    throw new errors.InvalidRequest('the subject_token is not valid'); // section 2.2.2
  });
  const response = await issue(ctx, payload.sub, params.resource, params.scope);
  ctx.body = { ...response, issued_token_type: ACCESS_TOKEN };
}, ['subject_token', 'subject_token_type', 'actor_token', 'actor_token_type', 'requested_token_type', 'resource', 'audience', 'scope']);

provider.on('server_error', (ctx, error) => console.error(error));
provider.listen(Number(port), '127.0.0.1', () => console.log('ready'));
