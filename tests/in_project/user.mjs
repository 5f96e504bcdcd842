// A browser without scripts, for the clients of the tests.

const unescaped = (text) => text.replaceAll('&amp;', '&').replaceAll('&quot;', '"').replaceAll('&#x27;', "'");

// Whoever sits before the browser: presses the first button of each page, and signs in with a name.
export async function signIn(target, user, callback) {
  const cookies = {};
  let method = 'GET';
  let body;
  for (;;) {
    if (String(target).startsWith(callback)) return new URL(target).searchParams;
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
