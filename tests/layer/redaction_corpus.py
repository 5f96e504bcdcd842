"""Texts with and without secrets, on which redaction is scored. All values are made up for this file.

A positive text has its secret between « and ». `{hex}`, `{b62}` and `{up}` are replaced by characters that are the same
in every run, so that no text of this file has the form of a real key.
"""

from __future__ import annotations

import random

POSITIVES: dict[str, tuple[str, ...]] = {
    "assignment": (
        "token=«tulip{hex8}»",
        "retry with password=«Winter-Boots» ok",
        "secret = «plum{b8}»",
        "x&jwt=«a{b8}»",
        "n=1, passphrase=«oak»",
    ),
    "repr of keyword": (
        "Login(user='ann', password='«blue sky»')",
        "Conf(api_key='«k{b8}»', n=1)",
        'S(secret="«it\'s»")',
    ),
    "repr of a dictionary": (
        "{'token': '«q{b8}»'}",
        "{'n': 1, 'client_secret': '«two words»'}",
        "{'Password': b'«x{b8}»'}",
    ),
    "repr of header pairs": (
        "[(b'cookie', b'«id=9»')]",
        "('X-Api-Key', '«{b8}»')",
        "[['authorization', '«Basic zz»']]",
    ),
    "JSON": ('{"password": "«green»"}', '{"apiKey":"«k{b8}»","n":1}', '{"a": {"access_token": "«{b20}»"}}'),
    "JSON in JSON": (
        r'{"body": "{\"password\": \"«hill 7»\"}"}',
        r"{\"token\":\"«t{b8}»\",\"n\":1}",
        r"{\\\"secret\\\": \\\"«s{b8}»\\\"}",
        r'"{\"client_secret\": \"«a\\\"b»\"}"',
    ),
    "list of passwords": (
        "passwords=['«one', 'two»']",
        '{"passwords": ["«one", "two»"]}',
        "Vault(secrets=('«a1', 'b2»'))",
        r"{\"passwords\": [\"«a1\", \"b2»\"]}",
    ),
    "YAML": (
        "password: «hunter»",
        "db:\n  password: «lake7»\n  port: 1",
        "  api_key: «k-{b8}»\n",
        "- token: «{b8}»\n- x: 1",
    ),
    "YAML, quoted": ('password: "«two words»"', "secret: '«it is»'", "x: 1\nclient_secret: '«c {b8}»'\n"),
    "environment file": ("DB_PASSWORD=«kite9»", "export API_TOKEN=«{b20}»", "A=1\nAWS_SECRET_ACCESS_KEY=«{b20}»\nB=2"),
    "header of a key": ("X-Api-Key: «x»", "sent X-Api-Key: «{b8}» to it", "Ocp-Apim-Subscription-Key: «{hex8}»"),
    "header with a token": (
        "X-Auth-Token: «{b8}»",
        "Private-Token: «{b20}»",
        "x-csrf-token: «{hex8}»",
        "X-Amz-Security-Token: «{b36}»",
        "X-Vault-Token: «{b20}»",
    ),
    "Authorization, bearer": (
        "Authorization: «Bearer {b20}»",
        "authorization: «bearer {b8}»",
        "GET / Authorization:«Bearer a.b»",
    ),
    "Authorization, basic": (
        "Authorization: «Basic {b20}==»",
        "Proxy-Authorization: «Basic {b8}=»",
        "authorization=«Basic»",
    ),
    "Authorization, digest": (
        'Authorization: Digest «username="ann", response="{hex32}"»',
        'got Digest username="ann", nonce="1", response="«{hex32}»"',
        'authorization: Digest «username="b", cnonce="{hex8}", response="{hex32}"»',
    ),
    "bearer without its header": ("got bearer «{b20}»", "Bearer «{b8}9.{b8}» expired", "curl -H 'Bearer «{b20}»'"),
    "basic without its header": ("scheme Basic «dXNlcjpwYXNz»", "used basic «{b20}==»", "(Basic «{b20}=»)"),
    "cookie": (
        "Cookie: «sid={b8}; theme=dark»",
        "Set-Cookie: «id={hex8}; Path=/»",
        "cookie: «a=1»",
        "x\r\nSet-Cookie: «s={b20}»\r\ny",
    ),
    "URL with credentials": ("https://«ann:pass»@host/x", "at http://«{b20}»@git.host/r.git", "ftp://«u:p%40q»@h:21/"),
    "connection string of a database": (
        "postgresql://«app:{b8}»@db:5432/x",
        "mysql+aiomysql://«root:toor»@h/d",
        "mongodb+srv://«u:{b8}»@cluster/x?w=1",
        "cannot connect to redis://«:{b8}»@redis:6379/0",
    ),
    "URL, password with @": ("postgres://«u:p@ss»@db/x", "amqp://«u:a@b@c»@mq:5672", "redis://«:x@{b8}»@r:1"),
    "connection string with fields": (
        "Server=db;User=sa;Password=«Lamp{b8}»;Encrypt=true",
        "Endpoint=sb://x/;SharedAccessKey=«{b20}=»",
        "DefaultEndpointsProtocol=https;AccountKey=«{b20}==»;",
        "Data Source=h;Uid=u;Pwd=«rope7»;",
    ),
    "libpq": ("host=db user=app password=«{b8}» dbname=x", "connection to 'host=h password=«a1» port=1' failed"),
    "query parameter": (
        "/v1?key=«{b8}»&q=1",
        "?q=Bern&appid=«{hex8}»",
        "https://h/cb?code=«{b20}»&state=1",
        "/m?sig=«{b20}»",
    ),
    "query parameter with a word": ("/x?access_token=«{b8}»&n=1", "?a=1&api-key=«{b8}»", "?X-Amz-Signature=«{hex32}»"),
    "form": ("grant_type=x&client_secret=«{b8}»", "user=a&passwd=«b7»&z=1", "refresh_token=«{b20}»&client_id=a"),
    "GitHub token": ("ghp_«{b36}»", "use gho_«{b36}»!", "url ghs_«{b36}» x", "clone: ghu_«{b36}», done"),
    "GitHub fine-grained token": ("github_pat_«{b20}_{b36}»", "x (github_pat_«{b36}_{b36}»)", "a:github_pat_«{b36}»"),
    "GitLab token": ("glpat-«{b20}»", "remote says glpat-«{b20}» is expired", "oauth2:glpat-«{b20}»"),
    "key of a model provider": (
        "sk-«{b36}»",
        "sk-proj-«{b20}_{b20}»",
        "with sk-ant-api03-«{b36}»-AA",
        "bad key sk-«{b20}».",
    ),
    "payment key": ("sk_live_«{b20}»", "rk_live_«{b20}» is used", "key sk_live_«{b36}»"),
    "AWS access key": ("AKIA«{up16}»", "id ASIA«{up16}» used", "InvalidAccessKeyId AKIA«{up16}»", "(AKIA«{up16}»)"),
    "Google API key": ("AIza«{b35}»", "maps AIza«{b35}» is restricted", "<AIza«{b35}»>"),
    "Google OAuth token": ("ya29.«{b36}»", "token was ya29.a0«{b36}», gone", "(ya29.«{b36}-{b8}»)"),
    "Slack token": (
        "xoxb-«1234567890-{b20}»",
        "xoxp-«1-2-3-{hex32}» revoked",
        "bot xoxa-«2-{b20}»",
        "xapp-«1-A-{b20}»",
    ),
    "Slack webhook": (
        "https://hooks.slack.com/services/«T0{up8}/B0{up8}/{b20}»",
        "to hooks.slack.com/services/«T1/B2/{b20}»",
    ),
    "package registry token": (
        "npm_«{b36}»",
        "pypi-«AgEI{b36}»",
        "//r/:_authToken=«npm_{b36}»",
        "login npm_«{b36}» ok",
    ),
    "mail provider key": ("SG.«{b20}.{b36}»", "mail by SG.«{b20}.{b36}» failed", "[SG.«{b20}.{b20}»]"),
    "other platform tokens": ("hf_«{b36}»", "dop_v1_«{hex32}{hex32}»", "shpat_«{hex32}»", "model hf_«{b36}» denied"),
    "PEM": (
        "-----BEGIN PRIVATE KEY-----\n«{b36}\n{b36}»\n-----END PRIVATE KEY-----",
        "-----BEGIN RSA PRIVATE KEY-----\n«{b36}»",
        "key '-----BEGIN EC PRIVATE KEY-----\\n«{b36}\\n»-----END EC PRIVATE KEY-----'",
        "-----BEGIN OPENSSH PRIVATE KEY-----«{b36}»-----END OPENSSH PRIVATE KEY-----",
    ),
    "JSON Web Token": ("eyJ«{b20}.eyJ{b20}.{b36}»", "bad token eyJ«{b36}.{b36}.{b20}» here", "t:eyJ«{b20}.{b20}.»"),
    "sentence": ("wrong password: «hunter2x»", "the token: «abc123def» was used", "secret key: «{b8}4z» is weak"),
    "passphrase without a name": ("the door opens with «correct horse»", "I said «sesame», twice", "use «Tuesday-42»"),
    "multipart form": ('name="password"\r\n\r\n«{b8}»\r\n--x', 'name="api_key"\r\n\r\n«{b20}»\r\n--y'),
    "command line": ("psql --password «hunter2»", "mysql -p«hunter2»", "curl -u «ann:{b8}»", "x --api-key «{b20}»"),
}

NEGATIVES = (
    *(
        "max_tokens=512",
        "max_tokens: 512",
        "token_type=bearer",
        "tokenizer=cl100k",
        "next_page_token=CAUQAA",
        "tokens=20",
    ),
    *(
        "page_token: abc",
        '{"token_type": "Bearer"}',
        "tokenizer: fast",
        "input_tokens=10 output_tokens=20",
        "tokens: 7",
    ),
    *(
        "{'max_tokens': 100}",
        "token_count=3",
        "completion_tokens=44",
        "total_tokens: 9001",
        "token_limit=8k",
        "monkey=3",
    ),
    *("tokenization: done", "continuation_token=abc", "sync_token=s1", "token_endpoint=https://i.example.com/token"),
    *(
        "token_url: https://i.example.com/t",
        "password_policy=strict",
        "secret_rotation: weekly",
        "signature_algorithm=RS256",
    ),
    *(
        "jwt_algorithm: ES256",
        "cookie_policy=lax",
        "password_length=12",
        "token_expires_in=3600",
        "credential_type=public",
    ),
    *(
        "Bearer authentication required",
        "missing bearer token",
        "basic training starts",
        "the basic idea",
        "a bearer of news",
    ),
    *(
        "invalid token: expired at noon",
        "wrong password: try again",
        "the secret: keep it simple and short",
        "no token given",
    ),
    *("password must have 8 characters", "the token is missing", "Bearer authentication required: no token"),
    *(
        "KeyError: 'city'",
        "ValueError: invalid literal for int() with base 10: 'x'",
        "timeout: 30 s",
        "monkey = 3, key: 4",
    ),
    *(
        "keyboard=qwerty",
        "keys=3",
        "cache key: user:1",
        "primary_key=id",
        "sort_key: name",
        "foreign_key=order_id",
        "key=1",
    ),
    *(
        "author=ann",
        "authority: x",
        "auth: jwt",
        "oauth=enabled",
        "passport=no",
        "compass: north",
        "passes=4",
        "cooking: 3",
    ),
    *(
        "https://example.com/a?b=c",
        "https://example.com:8443/x@y",
        "mailto:ann@example.com",
        "ann@example.com wrote: hi",
    ),
    *(
        "git@example.com:a/b.git",
        "http://host:80/users/@me",
        "ws://127.0.0.1:1/",
        "see https://h/tokens/list",
        "?q=key",
    ),
    *(
        "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
        "sha256:{hex32}{hex32}",
        "trace {hex32}",
        "commit {hex32}{hex8}",
        "etag {hex8}",
    ),
    *(
        "task-runner-for-large-projects-2026",
        "sk-SK locale",
        "risk-assessment-of-the-new-pipeline",
        "desk-booking",
        "ask-me",
    ),
    *("AKIAK is a name", "ASIA-PACIFIC", "Asia/Tokyo", "ASIAN MARKETS CLOSED", "xoxo from ann", "npm_config_cache=/x"),
    *("-----BEGIN CERTIFICATE-----\n{b36}\n-----END CERTIFICATE-----", "-----BEGIN PUBLIC KEY-----\n{b36}\n-----END"),
    *("eyJust a word", "eyJ", "hf_hub_download", "pypi-mirror", "SG. Geneva", "shpat_ is a prefix", "ghp_ is a prefix"),
    *(
        "GET /mcp 200 in 3 ms",
        "tool call",
        "listening on http://127.0.0.1:8000",
        "order 42: 3 items",
        "Straße: Bahnhof",
    ),
    *(
        "status=200 duration_ms=3.2",
        "Server=db;Encrypt=true",
        "Content-Type: application/json",
        "Accept: */*",
        "Host: a.b",
    ),
    *(
        "response=ok",
        "code=404",
        "sig: 3",
        "pwd: /home/ann",
        "PWD=/home/ann",
        "signed by ann",
        "a designature",
        "credit: 5",
    ),
)


def filled(text: str) -> str:
    """Return `text` with its placeholders replaced, and the marks around the secret kept."""
    chosen = random.Random(text)  # noqa: S311 (no secrets are made)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    kinds = {"hex": "0123456789abcdef", "b": f"{letters}{letters.lower()}0123456789", "up": f"{letters}234567"}
    for name, alphabet in kinds.items():
        for length in (8, 16, 20, 32, 35, 36):
            while (place := f"{{{name}{length}}}") in text:
                text = text.replace(place, "".join(chosen.choices(alphabet, k=length)), 1)
    return text
