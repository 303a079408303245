import { once } from 'node:events';
import { createServer, type AddressInfo, type Socket } from 'node:net';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { parseWebhookSecrets, webhookHeaders } from '../../../src/core/webhook-signature.js';
import { HttpHandler, type HttpHandlerOptions } from '../../../src/inbox/http-handler.js';
import type { InboxMessage } from '../../../src/inbox/ports.js';
import { systemClock } from '../../../src/runtime/clock.js';
import { ManualClock } from '../../support/manual-clock.js';
import { until } from '../../support/waiting.js';
import { WebServer, type Answer } from '../../support/web-server.js';
import { inboxMessage } from './inbox-message.js';

const SECRET = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw';
const OTHER_SECRET = 'whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD';

let server: WebServer;
const cleanUps: (() => unknown)[] = [];

beforeEach(async () => {
  server = await WebServer.start();
});

afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0)) await cleanUp();
  await server.stop();
});

function handlerWith(given: Partial<HttpHandlerOptions> = {}): HttpHandler {
  const handler = new HttpHandler({
    url: given.url ?? server.url(),
    timeoutMs: 5_000,
    concurrency: 4,
    rate: undefined,
    allow: [],
    retryAfterCapMs: 60_000,
    secrets: undefined,
    tls: () => ({}),
    unixMs: () => 1_700_000_000_500,
    clock: systemClock,
    ...given,
  });
  cleanUps.push(() => handler.close());
  return handler;
}

const { signal } = new AbortController();
const handle = (handler: HttpHandler, message: Partial<InboxMessage> = {}, by = signal) =>
  handler.handle(inboxMessage(message), by);

function answerWith(status: number, body = '', headers: Record<string, string> = {}): Answer {
  return (_, response) => response.writeHead(status, headers).end(body);
}

/** A port where nobody listens, or a raw TCP server that does what it is told with each connection. */
async function rawServer(onConnection: (socket: Socket) => void): Promise<string> {
  const raw = createServer((socket) => {
    socket.on('error', () => undefined);
    cleanUps.push(() => socket.destroy());
    onConnection(socket);
  }).listen(0, '127.0.0.1');
  await once(raw, 'listening');
  cleanUps.push(() => raw.close());
  return `http://127.0.0.1:${(raw.address() as AddressInfo).port}/`;
}

test('F103: the body goes as it was received, with what is known of the message and the same Idempotency-Key', async () => {
  const handler = handlerWith();
  const body = Buffer.from([0, 255, 1, 10, 13, 128]);
  expect(await handle(handler, { body, contentEncoding: 'gzip', contentType: 'application/x-thing' })).toEqual({
    kind: 'done',
  });
  await handle(handler, { attempt: 4 });
  const [first, second] = server.received;
  expect([first?.method, first?.path, first?.body]).toEqual(['POST', '/events', body]);
  expect(first?.headers).toMatchObject({
    'content-type': 'application/x-thing',
    'content-encoding': 'gzip',
    'content-length': '6',
    'idempotency-key': 'emails:b3b1c5e2-0000-4000-8000-000000000001',
    'x-waybill-consumer': 'emails',
    'x-waybill-id': 'b3b1c5e2-0000-4000-8000-000000000001',
    'x-waybill-type': 'order.paid',
    'x-waybill-key': 'order-42',
    'x-waybill-schema-version': '2',
    'x-waybill-attempt': '3',
    'x-waybill-correlation-id': 'corr-1',
    'x-waybill-causation-id': 'cause-1',
    'x-waybill-occurred-at': '2026-01-02T03:04:05.678Z',
    traceparent: '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01',
    tracestate: 'vendor=1',
  });
  expect(first?.headers).not.toHaveProperty('webhook-signature');
  expect(second?.headers['idempotency-key']).toBe(first?.headers['idempotency-key']);
  expect([second?.headers['x-waybill-attempt'], second?.headers['content-encoding']]).toEqual(['4', undefined]);
  expect(second?.body.toString()).toBe('{"order":42,"total":12345678901234567890}');
});

test('ids, types and keys of any characters cannot break a header, and decodeURIComponent gives them back', async () => {
  const nasty = ' ключ/100%\r\nx-injected: yes\0😀\ud800 ';
  const handler = handlerWith();
  await handle(handler, {
    messageId: nasty,
    key: nasty,
    type: '%41',
    contentType: 'text/plain\r\nx-injected: yes',
    contentEncoding: 'é',
    traceparent: 'garbage',
    correlationId: null,
    occurredAt: null,
    schemaVersion: null,
  });
  const headers = server.received[0]?.headers ?? {};
  expect(headers).not.toHaveProperty('x-injected');
  const wellFormed = nasty.replace('\ud800', '\ufffd');
  expect(decodeURIComponent(String(headers['x-waybill-id']))).toBe(wellFormed);
  expect(decodeURIComponent(String(headers['x-waybill-key']))).toBe(wellFormed);
  expect(decodeURIComponent(String(headers['x-waybill-type']))).toBe('%41');
  for (const name of ['content-type', 'content-encoding', 'traceparent', 'tracestate', 'x-waybill-correlation-id']) {
    expect(headers).not.toHaveProperty(name);
  }
});

test('a signature that Standard Webhooks verify; the secrets are read at each attempt, and all of them sign', async () => {
  let secrets = SECRET;
  const handler = handlerWith({ secrets: () => secrets });
  const message = inboxMessage();
  const expected = (text: string) => {
    const parsed = parseWebhookSecrets(text);
    const keys = 'keys' in parsed ? parsed.keys : [];
    return webhookHeaders(keys, { id: message.messageId, unixSeconds: 1_700_000_000, body: message.body });
  };
  await handle(handler);
  secrets = `${OTHER_SECRET}\n${SECRET}\n`;
  await handle(handler);
  expect(server.received[0]?.headers).toMatchObject(expected(SECRET));
  expect(server.received[1]?.headers).toMatchObject(expected(secrets));
  expect(String(server.received[1]?.headers['webhook-signature'])).toMatch(/^v1,\S{44} v1,\S{44}$/);

  secrets = 'mistyped';
  const verdict = await handle(handler);
  expect(verdict).toMatchObject({ kind: 'broken' });
  expect(JSON.stringify(verdict)).not.toContain('mistyped');
  expect(server.received).toHaveLength(2);
});

test('F104, F126: what the application answers becomes the verdict, its words the error', async () => {
  const handler = handlerWith();
  const cases: [Answer, unknown][] = [
    [answerWith(200, ' took\u0000 it\n'), { kind: 'done', result: 'took it' }],
    [answerWith(204), { kind: 'done' }],
    [answerWith(500, 'database\u001b[2J down'), { kind: 'retry', error: 'HTTP 500: database [2J down' }],
    [answerWith(503, '', { 'retry-after': '7' }), { kind: 'retry', error: 'HTTP 503', retryInMs: 7_000 }],
    [answerWith(429, '', { 'retry-after': '999999' }), { kind: 'retry', error: 'HTTP 429', retryInMs: 60_000 }],
    [
      answerWith(429, '', { 'retry-after': 'Sun, 06 Nov 1994 08:49:37 GMT', date: 'Sun, 06 Nov 1994 08:49:07 GMT' }),
      { kind: 'retry', error: 'HTTP 429', retryInMs: 30_000 },
    ],
    [answerWith(425), { kind: 'not-yet', error: 'HTTP 425' }],
    [answerWith(422, 'no such product'), { kind: 'never', error: 'HTTP 422: no such product' }],
    [answerWith(410), { kind: 'never', error: 'HTTP 410' }],
    [answerWith(400), { kind: 'never', error: 'HTTP 400' }],
    [answerWith(404), { kind: 'broken', error: 'HTTP 404' }],
    [answerWith(401), { kind: 'broken', error: 'HTTP 401' }],
  ];
  for (const [answer, verdict] of cases) {
    server.answer = answer;
    expect(await handle(handler)).toEqual(verdict);
  }
});

test('F126: a redirect is not followed, wherever it leads', async () => {
  const elsewhere = await WebServer.start();
  cleanUps.push(() => elsewhere.stop());
  const handler = handlerWith();
  for (const status of [301, 302, 303, 307, 308]) {
    server.answer = answerWith(status, '', { location: elsewhere.url() });
    expect(await handle(handler)).toEqual({ kind: 'broken', error: `HTTP ${status}` });
  }
  expect(elsewhere.connections).toBe(0);
});

test('F126: refused connections, unknown hosts and what is not HTTP are the consumer, not the message', async () => {
  const { port } = server;
  await server.stop();
  const refused = handlerWith({ url: `http://127.0.0.1:${port}/` });
  expect(await handle(refused)).toEqual({
    kind: 'broken',
    error: `127.0.0.1:${port}: connect ECONNREFUSED 127.0.0.1:${port}`,
  });
  server = await WebServer.start();

  const notFound = Object.assign(new Error('getaddrinfo ENOTFOUND gone.test'), { code: 'ENOTFOUND' });
  const unknown = handlerWith({
    url: 'http://gone.test/',
    allow: ['gone.test'],
    resolve: () => Promise.reject(notFound),
  });
  expect(await handle(unknown)).toEqual({ kind: 'broken', error: 'gone.test: getaddrinfo ENOTFOUND gone.test' });

  const shell = handlerWith({ url: await rawServer((socket) => socket.write('SSH-2.0-OpenSSH_9.6\r\n')) });
  expect(await handle(shell)).toMatchObject({ kind: 'broken', error: expect.stringContaining('not HTTP') as string });
});

test('a connection that breaks after the request was sent, or in the middle of a 2xx, spends an attempt', async () => {
  const handler = handlerWith();
  server.answer = (_, __, request) => request.socket.resetAndDestroy();
  expect(await handle(handler)).toMatchObject({
    kind: 'retry',
    error: expect.stringContaining('ECONNRESET') as string,
  });
  server.answer = (_, response) => {
    response.writeHead(200, { 'content-length': '100' }).write('half');
    response.socket?.end();
  };
  expect(await handle(handler)).toMatchObject({
    kind: 'retry',
    error: expect.stringContaining('the answer broke off') as string,
  });
  server.answer = (_, response) => {
    response.writeHead(200).write('half');
    setImmediate(() => response.destroy());
  };
  expect(await handle(handler)).toMatchObject({ kind: 'retry' });

  // Half a head.
  const halfHead = handlerWith({ url: await rawServer((socket) => socket.end('HTTP/1.1 200 OK\r\nx-a')) });
  expect(await handle(halfHead)).toMatchObject({ kind: 'retry' });
});

test('a status that is there counts, even when the rest of the answer never comes', async () => {
  const handler = handlerWith();
  server.answer = (_, response) => {
    response.writeHead(422, { 'content-length': '100' }).write('no such');
    setImmediate(() => response.destroy());
  };
  expect(await handle(handler)).toMatchObject({ kind: 'never' });
});

test('the whole exchange has one limit of time: a silent, and a dribbling application', async () => {
  const clock = new ManualClock();
  const handler = handlerWith({ clock, timeoutMs: 9_000 });
  server.answer = () => undefined;
  const silent = handle(handler);
  await until(() => server.received.length === 1, { what: 'the request to arrive' });
  clock.advance(8_999);
  clock.advance(1);
  const limit = 'no whole answer in time (9000 ms)';
  expect(await silent).toEqual({ kind: 'retry', error: `127.0.0.1:${server.port}: ${limit}` });
  await until(() => server.openConnections === 0, { what: 'the connection to be closed' });

  server.answer = (_, response) => response.writeHead(200).write('a');
  const dribbling = handle(handler);
  await until(() => server.received.length === 2, { what: 'the request to arrive' });
  clock.advance(9_000);
  expect(await dribbling).toMatchObject({ kind: 'retry' });
  expect(clock.pending).toBe(0);
});

test('F126: a connection that is not made in time is the consumer, not the message', async () => {
  const clock = new ManualClock();
  const handler = handlerWith({
    clock,
    url: 'http://slow.test/',
    allow: ['slow.test'],
    resolve: () => new Promise(() => undefined),
  });
  const verdict = handle(handler);
  await until(() => clock.pending === 1, { what: 'the attempt to begin' });
  clock.advance(5_000);
  expect(await verdict).toEqual({ kind: 'broken', error: 'slow.test: no connection in time' });
});

test('a huge answer is cut: done by its status, the result bounded, the connection not read on', async () => {
  const handler = handlerWith();
  let written = 0;
  server.answer = (_, response) => {
    response.writeHead(200);
    const pump = (): void => {
      while (!response.destroyed && response.write('x'.repeat(65_536))) written += 65_536;
    };
    response.on('drain', pump);
    pump();
  };
  const verdict = await handle(handler);
  expect(verdict).toEqual({ kind: 'done', result: `${'x'.repeat(1_023)}…` });
  await until(() => server.openConnections === 0, { what: 'the connection to be closed' });
  expect(written).toBeLessThan(64 * 2 ** 20);
});

test('an answer with huge headers is refused', async () => {
  server.answer = answerWith(200, '', { 'x-a': 'y'.repeat(20_000) });
  expect(await handle(handlerWith())).toMatchObject({ kind: 'broken' });
});

test('connections are kept and used again; one that the application closed while idle costs nothing', async () => {
  const handler = handlerWith();
  await handle(handler);
  await handle(handler);
  expect(server.connections).toBe(1);
  // Gone without our knowing: the reset meets the next request.
  server.answer = (received, response, request) => {
    if (received.connection === 1) request.socket.resetAndDestroy();
    else response.end('fresh');
  };
  expect(await handle(handler)).toEqual({ kind: 'done', result: 'fresh' });
  expect(server.received.map(({ connection }) => connection)).toEqual([1, 1, 1, 2]);
});

test('no more requests at once than `concurrency`, nor connections', async () => {
  const handler = handlerWith({ concurrency: 3 });
  const waiting: (() => void)[] = [];
  server.answer = (_, response) => void waiting.push(() => response.end());
  const all = Promise.all(Array.from({ length: 10 }, (_, n) => handle(handler, { messageId: `m${n}` })));
  for (let answered = 0; answered < 10; answered += 1) {
    const most = Math.min(10, answered + 3);
    await until(() => server.received.length === most, { what: `${most} requests` });
    expect(waiting.length).toBeLessThanOrEqual(3);
    waiting.shift()?.();
  }
  expect(await all).toHaveLength(10);
  expect(server.connections).toBe(3);
  expect(server.received.map(({ headers }) => headers['x-waybill-id'])).toEqual(
    Array.from({ length: 10 }, (_, n) => `m${n}`),
  );
});

test('waiting for one another is not counted against the time of an attempt', async () => {
  const clock = new ManualClock();
  const handler = handlerWith({ clock, concurrency: 1, timeoutMs: 1_000 });
  const waiting: (() => void)[] = [];
  server.answer = (_, response) => void waiting.push(() => response.end());
  const both = Promise.all([handle(handler), handle(handler)]);
  for (const nth of [1, 2]) {
    await until(() => server.received.length === nth, { what: `request ${nth}` });
    clock.advance(900);
    waiting.shift()?.();
  }
  expect(await both).toEqual([{ kind: 'done' }, { kind: 'done' }]);
});

test('no more requests in a time than `rate`', async () => {
  const clock = new ManualClock();
  const handler = handlerWith({ clock, rate: { count: 2, perMs: 1_000 } });
  const all = Promise.all([1, 2, 3].map(() => handle(handler)));
  await until(() => server.received.length === 1, { what: 'the first request' });
  clock.advance(499);
  await until(() => server.openConnections === 1, { what: 'the first connection to idle' });
  expect(server.received).toHaveLength(1);
  clock.advance(1);
  await until(() => server.received.length === 2, { what: 'the second request' });
  clock.advance(500);
  await all;
  expect(server.received).toHaveLength(3);
  expect(handler.longestMs).toBe(5_000 + 2_000);
});

test('with a slow rate no more are taken than may go soon: a lease of all of them would be longer than one may be', () => {
  const slow = handlerWith({ concurrency: 32, rate: { count: 1, perMs: 3_600_000 } });
  expect(slow.concurrency).toBe(1);
  expect(slow.longestMs).toBe(5_000 + 3_600_000);
  expect(handlerWith({ concurrency: 32, rate: { count: 10, perMs: 60_000 } }).concurrency).toBe(10);
  expect(handlerWith({ concurrency: 32, rate: { count: 50, perMs: 1_000 } }).concurrency).toBe(32);
});

test('F112: an abort ends the request and the waiting for one, without a verdict', async () => {
  const handler = handlerWith({ concurrency: 1 });
  const stopping = new AbortController();
  server.answer = () => undefined;
  const running = handle(handler, {}, stopping.signal);
  const queued = handle(handler, {}, stopping.signal);
  await until(() => server.received.length === 1, { what: 'the request to arrive' });
  stopping.abort();
  await expect(running).rejects.toMatchObject({ code: 'WAYBILL_STOPPED' });
  await expect(queued).rejects.toMatchObject({ code: 'WAYBILL_STOPPED' });
  await expect(handle(handler, {}, stopping.signal)).rejects.toMatchObject({ code: 'WAYBILL_STOPPED' });
  await until(() => server.openConnections === 0, { what: 'the connection to be closed' });
  server.answer = answerWith(200);
  expect(await handle(handler)).toEqual({ kind: 'done' });
});

test('SSRF: a name goes only where it may, and to the address that was checked', async () => {
  let addresses: string[] = [];
  let lookups = 0;
  const resolve = () => {
    lookups += 1;
    return Promise.resolve(addresses.map((address) => ({ address, family: address.includes(':') ? 6 : 4 })));
  };
  const of = (host: string, ...allow: string[]) =>
    handle(handlerWith({ url: `http://${host}:${server.port}/`, allow, resolve }));

  addresses = ['127.0.0.1'];
  expect(await of('localhost')).toMatchObject({ kind: 'done' });
  const refused = { kind: 'broken', error: expect.stringContaining('where no handler may be') as string };
  expect(await of('billing.test', 'billing.test')).toMatchObject(refused);
  addresses = ['169.254.169.254'];
  expect(await of('billing.test', 'billing.test', '0.0.0.0/0')).toMatchObject(refused);
  addresses = ['::ffff:169.254.169.254', 'fe80::1', '0.0.0.0', '::'];
  expect(await of('localhost')).toMatchObject(refused);
  addresses = [];
  expect(await of('localhost')).toMatchObject({ kind: 'broken' });
  // Of several addresses only those that may be called are tried.
  addresses = ['169.254.169.254', '10.0.0.1', '127.0.0.1'];
  expect(await of('localhost')).toMatchObject({ kind: 'done' });
  expect(server.received).toHaveLength(2);

  // A name that changes after the check: each connection looks once, and goes to what was found then.
  lookups = 0;
  const rebinding = handlerWith({
    url: `http://localhost:${server.port}/`,
    resolve: () => {
      const found = lookups === 0 ? '127.0.0.1' : '169.254.169.254';
      lookups += 1;
      return Promise.resolve([{ address: found, family: 4 }]);
    },
  });
  expect(await handle(rebinding)).toMatchObject({ kind: 'done' });
  expect(lookups).toBe(1);
  server.dropConnections();
  await until(() => server.openConnections === 0, { what: 'the connection to be closed' });
  await until(async () => (await handle(rebinding)).kind === 'broken', { what: 'the second look-up' });
});

test('SSRF: an address in the URL is checked in all its spellings before anything is sent', async () => {
  const resolve = () => Promise.reject(new Error('nobody asks'));
  const spellings = [
    '169.254.169.254',
    '2852039166',
    '0xa9fea9fe',
    '0251.0376.0251.0376',
    '[::ffff:169.254.169.254]',
    '[fe80::1]',
    '0.0.0.0',
    '0',
    '[::]',
    '10.0.0.1',
  ];
  for (const host of spellings) {
    const handler = handlerWith({ url: `http://${host}:${server.port}/`, resolve });
    expect(await handle(handler)).toMatchObject({
      kind: 'broken',
      error: expect.stringContaining('where no handler may be') as string,
    });
  }
  for (const host of ['127.0.0.1', '2130706433', '0x7f.1']) {
    expect(await handle(handlerWith({ url: `http://${host}:${server.port}/`, resolve }))).toMatchObject({
      kind: 'done',
    });
  }
  expect(server.received).toHaveLength(3);
});
