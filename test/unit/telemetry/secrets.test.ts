import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { z } from 'zod';
import { AdminServer } from '../../../src/admin/server.js';
import { readAdminToken } from '../../../src/app/admin-token.js';
import { httpHandler } from '../../../src/app/http-handler.js';
import { passwordFrom } from '../../../src/app/password-command.js';
import { configuration } from '../../../src/cli/configuration.js';
import type { CliContext } from '../../../src/cli/context.js';
import { formatFailure } from '../../../src/cli/failure.js';
import { httpHandlerKeys, toHttpHandler } from '../../../src/config/http-handler.js';
import { WaybillError } from '../../../src/core/errors.js';
import { systemClock } from '../../../src/runtime/clock.js';
import { createLogger, silentLogger } from '../../../src/telemetry/log.js';
import { createJsonRedactor, createTextRedactor, REDACTED } from '../../../src/telemetry/redact.js';
import { adminAt } from '../../support/admin.js';
import { inboxMessage } from '../inbox/inbox-message.js';

const folder = mkdtempSync(join(tmpdir(), 'waybill-secrets-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** What a secret may look like: anything that can be typed into a URL, a file, or printed by a program. */
const anySecret = fc
  .string({ unit: 'binary', minLength: 10, maxLength: 40 })
  // Line ends end a file's value; white space around what a command prints is taken away.
  .map((text) => `s${text.replaceAll(/[\0\r\n]/g, '"')}e`);
const tokenSecret = fc.stringMatching(/^[\x21-\x7e]{16,40}$/);

/** Every form in which it could be written. */
function formsOf(secret: string): string[] {
  const url = new URL('amqp://u@h');
  url.password = secret;
  return [secret, encodeURIComponent(secret), url.password, new URLSearchParams({ p: secret }).toString().slice(2)];
}

/** What all the ways out make of a text: log, failures, JSON of commands, text of commands. */
function shown(text: string): string[] {
  const lines: string[] = [];
  const log = createLogger({ level: 'debug', format: 'json', isTerminal: false, write: (line) => lines.push(line) });
  const error = new WaybillError('WAYBILL_DATABASE_REFUSED', text, { hint: text, cause: new Error(text) });
  log.error({ err: error, text, [text]: 1, deep: [{ text }] }, text);
  return [
    ...lines.flatMap((line) => stringsOf(JSON.parse(line))),
    formatFailure(error, { verbose: true }),
    formatFailure(new Error(text), { verbose: false }),
    createTextRedactor()(text),
    ...stringsOf(JSON.parse(createJsonRedactor()({ problems: [{ text }], [text]: 1 }))),
  ];
}

function stringsOf(value: unknown): string[] {
  if (typeof value === 'string') return [value];
  if (typeof value !== 'object' || value === null) return [];
  return Object.entries(value).flatMap(([name, item]) => [name, ...stringsOf(item)]);
}

/** What never stands in a URL is looked for as it is. */
function expectHidden(secret: string, forms: readonly string[] = [secret]): void {
  for (const form of forms) {
    for (const text of shown(`before ${form} after amqp://u:${form}`)) {
      for (const piece of text.split(REDACTED)) expect(piece.includes(form)).toBe(false);
    }
  }
}

const URLS = { WAYBILL_DATABASE_URL: 'postgres://h/d', WAYBILL_BROKER_URL: 'amqp://localhost' };

/** Reads a configuration as every command does. */
function load(environment: Record<string, string>, files: Record<string, string> = {}): void {
  const context = { environment: { ...URLS, ...environment }, readFile: (path: string) => files[path] ?? '' };
  configuration(context as unknown as CliContext, () => ({})).whole();
}

const PLAINTEXT = { WAYBILL_DATABASE_TLS_MODE: 'insecure-plaintext', WAYBILL_BROKER_TLS_MODE: 'insecure-plaintext' };

describe('no secret is shown, wherever it was learned', () => {
  const encoded = (secret: string) => encodeURIComponent(secret);
  it.each<[string, (secret: string) => void]>([
    [
      'the URL of the database',
      (secret) => load({ ...PLAINTEXT, WAYBILL_DATABASE_URL: `postgres://u:${encoded(secret)}@h/d` }),
    ],
    [
      'a parameter of that URL',
      (secret) => load({ ...PLAINTEXT, WAYBILL_DATABASE_URL: `postgres://u@h/d?password=${encoded(secret)}` }),
    ],
    [
      'the URL of the replication',
      (secret) => load({ ...PLAINTEXT, WAYBILL_DATABASE_REPLICATION_URL: `postgres://u:${encoded(secret)}@h/d` }),
    ],
    [
      'several hosts',
      (secret) => load({ ...PLAINTEXT, WAYBILL_DATABASE_URL: `postgres://u:${encoded(secret)}@h1,h2:5433/d` }),
    ],
    ['the URL of the broker', (secret) => load({ ...PLAINTEXT, WAYBILL_BROKER_URL: `amqp://u:${encoded(secret)}@h` })],
    [
      'a file',
      (secret) =>
        load(
          { ...PLAINTEXT, WAYBILL_BROKER_URL: '', WAYBILL_BROKER_URL_FILE: '/url' },
          { '/url': `amqp://u:${encoded(secret)}@h\n` },
        ),
    ],
    [
      'the configuration file',
      (secret) => {
        const file = `database: { url: "postgres://u:${encoded(secret)}@h/d", tls: { mode: insecure-plaintext } }`;
        load({ WAYBILL_DATABASE_URL: '', WAYBILL_CONFIG: '/w.yaml' }, { '/w.yaml': file });
      },
    ],
  ])('%s', (_, learn) => {
    fc.assert(
      fc.property(anySecret, (secret) => {
        learn(secret);
        expectHidden(secret, formsOf(secret));
      }),
      { numRuns: 60 },
    );
  });

  it('the token of the admin HTTP', async () => {
    await fc.assert(
      fc.asyncProperty(tokenSecret, async (secret) => {
        const path = join(folder, 'token');
        writeFileSync(path, `${secret}\n`);
        await readAdminToken(path);
        expectHidden(secret);
      }),
      { numRuns: 30 },
    );
  });

  it('what a password command prints', async () => {
    await fc.assert(
      fc.asyncProperty(anySecret, async (secret) => {
        const path = join(folder, 'password');
        writeFileSync(path, secret);
        await passwordFrom(['cat', path], 'broker', 'amqp://u@h', 5672)();
        expectHidden(secret.trim(), formsOf(secret.trim()));
      }),
      { numRuns: 15 },
    );
  });

  it('the file of webhook secrets, also one that holds something else', async () => {
    const secretFile = join(folder, 'webhook');
    const raw = { url: 'http://127.0.0.1:1/', secretFile };
    const handler = httpHandler(toHttpHandler(z.strictObject(httpHandlerKeys).parse(raw)), systemClock);
    const learn = () => handler.handle(inboxMessage(), new AbortController().signal);
    const key = fc.uint8Array({ minLength: 24, maxLength: 64 }).map((bytes) => Buffer.from(bytes).toString('base64'));
    await fc.assert(
      fc.asyncProperty(key, anySecret, async (secret, other) => {
        writeFileSync(secretFile, `whsec_${secret}\n`);
        await learn();
        expectHidden(secret);
        writeFileSync(secretFile, other);
        expect(JSON.stringify(await learn())).not.toContain(other.trim());
        expectHidden(other.trim());
      }),
      { numRuns: 15 },
    );
    handler.close();
  });

  it('what is a secret by its look: private keys, webhook secrets, passwords in URLs', () => {
    const key = `-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIFh\nAoGCCqGSM49==\n-----END EC PRIVATE KEY-----`;
    for (const text of [key, key.slice(0, 60), 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw']) {
      for (const line of shown(`read ${text}`)) expect(line).not.toMatch(/MHcCAQEE|MfKQ9r8GKYqr/);
    }
    expect(createTextRedactor()('amqps://u:pass%2Fword@h/v')).toBe(`amqps://u:${REDACTED}@h/v`);
  });
});

it('the admin HTTP shows no secret, also one that JSON writes in another way', async () => {
  const secret = 'quo"te\\back\nline';
  load({ ...PLAINTEXT, WAYBILL_DATABASE_URL: `postgres://u:${encodeURIComponent(secret)}@h/d` });
  const leak = () => ({ text: `at ${secret}!`, [secret]: 1 });
  const server = await AdminServer.open(
    {
      health: () => [{ name: 'relay', ready: false, reason: secret, detail: leak() }],
      eventLoopLag: () => 0,
      metrics: { contentType: 'text/plain', show: () => Promise.resolve('') },
      live: leak,
      status: () => Promise.resolve(leak()),
    },
    { host: '127.0.0.1', port: 0, hostNames: [], token: undefined, log: silentLogger, clock: systemClock },
  );
  try {
    for (const path of ['/readyz', '/status', '/status/live', '/livez']) {
      const { body } = await adminAt(server.port).get(path);
      for (const text of stringsOf(JSON.parse(body))) expect(text).not.toContain(secret);
    }
    expect((await adminAt(server.port).get('/status')).body).toContain(REDACTED);
  } finally {
    await server.close();
  }
});

it('a URL that cannot be used is not repeated by the problem that says so', () => {
  const broken = fc.constantFrom(
    (secret: string) => ({ WAYBILL_DATABASE_URL: `postgres://u:${secret}@h:port/d` }),
    (secret: string) => ({ WAYBILL_DATABASE_URL: `postgres://u:${secret}@h` }),
    (secret: string) => ({ WAYBILL_BROKER_URL: `http://u:${secret}@h/v` }),
    (secret: string) => ({ WAYBILL_BROKER_URL: `amqp://u:${secret}@h/v/w` }),
    (secret: string) => ({ WAYBILL_BROKER_URL: secret }),
    (secret: string) => ({ WAYBILL_BROKER_PASSWORD_COMMAND: secret }),
    (secret: string) => ({ WAYBILL_DATABASE_TLS_MODE: 'nonsense', WAYBILL_BROKER_URL: `amqp://u:${secret}@other` }),
  );
  fc.assert(
    fc.property(anySecret, broken, (secret, environment) => {
      let text = '';
      try {
        load(environment(secret));
      } catch (error) {
        text = formatFailure(error, { verbose: true });
      }
      expect(text).toContain('WAYBILL_CONFIG_INVALID');
      expect(text).not.toContain(secret);
      expect(text).not.toContain(encodeURIComponent(secret));
    }),
    { numRuns: 300 },
  );
});
