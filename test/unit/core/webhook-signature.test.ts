import { webcrypto } from 'node:crypto';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { parseWebhookSecrets, webhookHeaders } from '../../../src/core/webhook-signature.js';

/** The vector that the libraries of Standard Webhooks carry in their tests. */
const VECTOR = {
  secret: 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw',
  id: 'msg_p5jXN8AQM9LWM0D4loKWxJek',
  unixSeconds: 1_614_265_330,
  body: Buffer.from('{"test": 2432232314}'),
  signature: 'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=',
};

function keysOf(text: string): readonly Buffer[] {
  const parsed = parseWebhookSecrets(text);
  if ('problem' in parsed) throw new Error(parsed.problem);
  return parsed.keys;
}

test('the signature is that of the published test vector', () => {
  expect(webhookHeaders(keysOf(VECTOR.secret), VECTOR)).toEqual({
    'webhook-id': VECTOR.id,
    'webhook-timestamp': '1614265330',
    'webhook-signature': VECTOR.signature,
  });
});

test('what another implementation of HMAC verifies, with each of two secrets while one replaces the other', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.uint8Array({ minLength: 24, maxLength: 64 }),
      fc.uint8Array({ minLength: 24, maxLength: 64 }),
      fc.uint8Array(),
      async (first, second, bytes) => {
        const body = Buffer.from(bytes);
        const lines = [first, second].map((key) => `whsec_${Buffer.from(key).toString('base64')}`);
        const headers = webhookHeaders(keysOf(`${lines.join('\r\n')}\n`), { id: 'a.b', unixSeconds: 5, body });
        const signatures = headers['webhook-signature'].split(' ');
        expect(signatures).toHaveLength(2);
        for (const [index, raw] of [first, second].entries()) {
          const algorithm = { name: 'HMAC', hash: 'SHA-256' };
          const key = await webcrypto.subtle.importKey('raw', Buffer.from(raw), algorithm, false, ['verify']);
          const signature = Buffer.from(signatures[index]!.slice(3), 'base64');
          const signed = Buffer.concat([Buffer.from('a.b.5.'), body]);
          expect(await webcrypto.subtle.verify('HMAC', key, signature, signed)).toBe(true);
        }
      },
    ),
    { numRuns: 50 },
  );
});

test('a secret file is refused by its line, without a word of what it holds', () => {
  const good = VECTOR.secret;
  const wrong: [string, number][] = [
    ['MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', 1],
    [`${good}\n\nwhsec_dG9vIHNob3J0`, 3],
    [`${good}\nwhsec_${'A'.repeat(200)}`, 2],
    [`${good}\nwhsec_not base64 at all, but long enough!`, 2],
    [`${good}\n${good} ${good}`, 2],
  ];
  for (const [text, line] of wrong) {
    const parsed = parseWebhookSecrets(text);
    expect(parsed).toEqual({ problem: `line ${line} is not whsec_ and 24 to 64 bytes in base64` });
  }
  expect(parseWebhookSecrets('\n \n')).toEqual({ problem: 'there is no secret in it' });
  expect(keysOf(`\n  ${good}\r\n\n`)).toEqual([Buffer.from(good.slice(6), 'base64')]);
});
