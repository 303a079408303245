import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { checkServerIdentity, type ConnectionOptions } from 'node:tls';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { HttpHandler } from '../../../src/inbox/http-handler.js';
import { systemClock } from '../../../src/runtime/clock.js';
import { WebServer } from '../../support/web-server.js';
import { inboxMessage } from './inbox-message.js';

let folder: string;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'waybill-tls-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A self-signed certificate for a name, made by openssl. */
function certificate(name: string): { cert: string; key: string } {
  const [certFile, keyFile] = ['crt', 'key'].map((end) => join(folder, `${name}.${end}`)) as [string, string];
  const subject = ['-subj', `/CN=${name}`, '-addext', `subjectAltName=DNS:${name},IP:127.0.0.1`];
  const made = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'];
  execFileSync('openssl', [...made, '-keyout', keyFile, '-out', certFile, ...subject], { stdio: 'pipe' });
  return { cert: readFileSync(certFile, 'utf8'), key: readFileSync(keyFile, 'utf8') };
}

async function verdictOver(server: WebServer, host: string, tls: () => ConnectionOptions): Promise<unknown> {
  const handler = new HttpHandler({
    url: server.url(host),
    timeoutMs: 5_000,
    concurrency: 1,
    rate: undefined,
    allow: [],
    retryAfterCapMs: 60_000,
    secrets: undefined,
    tls,
    unixMs: () => 0,
    clock: systemClock,
    resolve: () => Promise.resolve([{ address: '127.0.0.1', family: 4 }]),
  });
  try {
    return await handler.handle(inboxMessage(), new AbortController().signal);
  } finally {
    handler.close();
  }
}

test('F126: a certificate of nobody we trust, or of another name, is the consumer; a trusted one is taken up when it is there', async () => {
  const right = certificate('localhost');
  const wrong = certificate('elsewhere.test');
  const server = await WebServer.start(right);
  const other = await WebServer.start(wrong);
  try {
    const trusting = (ca: string): ConnectionOptions => ({ ca, rejectUnauthorized: true, checkServerIdentity });
    const broken = (words: string) => ({ kind: 'broken', error: expect.stringContaining(words) as string });
    expect(await verdictOver(server, 'localhost', () => ({}))).toMatchObject(broken('self-signed certificate'));
    expect(await verdictOver(server, 'localhost', () => trusting(wrong.cert))).toMatchObject(broken('certificate'));
    expect(await verdictOver(other, 'localhost', () => trusting(wrong.cert))).toMatchObject(broken('localhost'));
    expect(await verdictOver(server, 'localhost', () => trusting(right.cert))).toEqual({ kind: 'done' });
    expect(await verdictOver(server, '127.0.0.1', () => trusting(right.cert))).toEqual({ kind: 'done' });
    expect(server.received).toHaveLength(2);
    expect(other.received).toHaveLength(0);
  } finally {
    await server.stop();
    await other.stop();
  }
});

test('F126: a certificate file that holds no certificate yet is the consumer, also for requests that wait for a connection', async () => {
  const server = await WebServer.start(certificate('localhost'));
  const handler = new HttpHandler({
    url: server.url('localhost'),
    timeoutMs: 200,
    concurrency: 2,
    rate: undefined,
    allow: [],
    retryAfterCapMs: 60_000,
    secrets: undefined,
    tls: () => ({ cert: 'nothing', key: 'nothing' }),
    unixMs: () => 0,
    clock: systemClock,
    resolve: () => Promise.resolve([{ address: '127.0.0.1', family: 4 }]),
  });
  try {
    const verdicts = [1, 2, 3].map(() => handler.handle(inboxMessage(), new AbortController().signal));
    for (const verdict of await Promise.all(verdicts)) {
      expect(verdict).toMatchObject({
        kind: 'broken',
        error: expect.stringContaining('certificate files of the handler (tls)') as string,
      });
    }
    expect(server.received).toHaveLength(0);
  } finally {
    handler.close();
    await server.stop();
  }
});
