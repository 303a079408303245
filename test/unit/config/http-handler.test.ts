import { expect, test } from 'vitest';
import { z } from 'zod';
import { checkHttpHandler, httpHandlerKeys, toHttpHandler } from '../../../src/config/http-handler.js';

const schema = z.strictObject(httpHandlerKeys);
const url = 'http://127.0.0.1:8080/events';

function problemsOf(raw: Record<string, unknown>): string[] {
  const parsed = schema.safeParse(raw);
  if (!parsed.success) return parsed.error.issues.map(({ path, message }) => `${path.join('.')} ${message}`);
  return checkHttpHandler(parsed.data, 'h').map(({ at, problem }) => `${at} ${problem}`);
}

test('defaults, and units read', () => {
  expect(toHttpHandler(schema.parse({ url }))).toEqual({
    kind: 'http',
    url,
    timeoutMs: 10_000,
    concurrency: 8,
    rate: undefined,
    secretFile: undefined,
    allow: [],
    retryAfterCapMs: 3_600_000,
    tls: { mode: 'insecure-plaintext', caFile: undefined, certFile: undefined, keyFile: undefined },
  });
  const given = {
    url: 'https://billing.internal/hook?x=1',
    timeout: '500ms',
    concurrency: 2,
    rate: '600/m',
    secretFile: '/run/secrets/hook',
    allow: ['billing.internal', '10.1.0.0/16', '::1', 'fd00::/8'],
    retryAfterCap: '10m',
    tls: { caFile: '/etc/ca.pem' },
  };
  expect(problemsOf(given)).toEqual([]);
  expect(toHttpHandler(schema.parse(given))).toMatchObject({
    timeoutMs: 500,
    rate: { count: 600, perMs: 60_000 },
    allow: given.allow,
    retryAfterCapMs: 600_000,
    tls: { mode: 'verify-full', caFile: '/etc/ca.pem' },
  });
});

test('a URL is refused that hides its host, carries credentials or can lead nowhere', () => {
  const refused: [unknown, string][] = [
    [undefined, 'is missing'],
    [5, 'is not a URL'],
    ['events', 'is not a URL'],
    ['ftp://127.0.0.1/', 'is neither'],
    ['http://user:secret@127.0.0.1/', 'carries credentials'],
    ['http://127.0.0.1/#x', 'after #'],
    ['http://2130706433/', 'not written plainly'],
    ['http://0177.0.0.1/', 'not written plainly'],
    ['http://0x7f.1/', 'not written plainly'],
    ['http://127.1/', 'not written plainly'],
    ['http://[0:0::1]/', 'not written plainly'],
    ['http://169.254.169.254/latest', 'metadata'],
    ['http://0.0.0.0:8080/', 'unspecified'],
    ['http://[::ffff:a9fe:a9fe]/', 'metadata'],
    ['http://[fe80::1]/', 'link-local'],
  ];
  for (const [given, words] of refused) {
    const [problem = ''] = problemsOf({ url: given });
    expect([given, problem]).toEqual([given, expect.stringContaining(words)]);
    expect(problem).not.toContain('secret');
  }
  for (const host of ['127.0.0.1', 'localhost', 'LocalHost', '[::1]', '127.8.8.8:81']) {
    expect(problemsOf({ url: `http://${host}/x` })).toEqual([]);
  }
});

test('another machine needs the allow-list and https, or a word that plaintext is meant', () => {
  const elsewhere = 'h.url is on another machine, which is not in the allow-list';
  const readable = 'h.url is http://, which sends every message readable over the network';
  const plaintext = { tls: { mode: 'insecure-plaintext' } };
  expect(problemsOf({ url: 'http://billing.internal/' })).toEqual([elsewhere, readable]);
  expect(problemsOf({ url: 'https://billing.internal/' })).toEqual([elsewhere]);
  expect(problemsOf({ url: 'https://billing.internal/', allow: ['other.internal'] })).toEqual([elsewhere]);
  expect(problemsOf({ url: 'https://billing.internal/', allow: ['Billing.Internal'] })).toEqual([]);
  expect(problemsOf({ url: 'https://billing.internal/', allow: ['10.0.0.0/8'] })).toEqual([]);
  expect(problemsOf({ url: 'http://billing.internal/', allow: ['billing.internal'] })).toEqual([readable]);
  expect(problemsOf({ url: 'http://billing.internal/', allow: ['billing.internal'], ...plaintext })).toEqual([]);
  expect(problemsOf({ url: 'https://10.1.2.3/', allow: ['11.0.0.0/8'] })).toEqual([elsewhere]);
  expect(problemsOf({ url: 'https://10.1.2.3/', allow: ['10.1.2.3'] })).toEqual([]);
  expect(problemsOf({ url: 'https://localhost/', ...plaintext })).toEqual([
    'h.tls.mode contradicts h.url, which is https://',
  ]);
  expect(problemsOf({ url: 'https://localhost/', tls: { certFile: '/c' } })).toEqual([
    'h.tls has only one of certFile and keyFile',
  ]);
});

test('rates and allowed hosts are checked', () => {
  for (const rate of [50, '50', '0/s', '5/d', '200000/s', 'fast']) {
    expect(problemsOf({ url, rate })).toEqual(['rate is not a rate']);
  }
  for (const allow of ['billing.internal', [5], ['*.internal'], ['10.0.0.1/8'], ['10.0.300'], ['http://x'], ['a:80']]) {
    expect(problemsOf({ url, allow })).toHaveLength(1);
  }
});
