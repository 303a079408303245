import { createHmac } from 'node:crypto';

const PREFIX = 'whsec_';
const MIN_BYTES = 24;
const MAX_BYTES = 64;

/** The keys of a secret file, or what is wrong with it, in words that repeat nothing of it. */
export type ParsedSecrets = { keys: readonly Buffer[] } | { problem: string };

/**
 * Reads the secrets of Standard Webhooks (https://www.standardwebhooks.com): `whsec_` and 24 to 64 bytes in base64, one a
 * line. Several mean that one is replaced by another: all of them sign.
 */
export function parseWebhookSecrets(text: string): ParsedSecrets {
  const keys: Buffer[] = [];
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    const secret = line.trim();
    if (secret === '') continue;
    const encoded = secret.slice(PREFIX.length);
    const key = Buffer.from(encoded, 'base64');
    const exact = key.toString('base64').replaceAll('=', '') === encoded.replaceAll('=', '');
    if (!secret.startsWith(PREFIX) || !exact || key.length < MIN_BYTES || key.length > MAX_BYTES) {
      return { problem: `line ${index + 1} is not whsec_ and ${MIN_BYTES} to ${MAX_BYTES} bytes in base64` };
    }
    keys.push(key);
  }
  return keys.length === 0 ? { problem: 'there is no secret in it' } : { keys };
}

/** The three headers that prove who sent a body, and when (whole seconds since 1970). */
export function webhookHeaders(
  keys: readonly Buffer[],
  { id, unixSeconds, body }: { id: string; unixSeconds: number; body: Buffer },
): Record<'webhook-id' | 'webhook-timestamp' | 'webhook-signature', string> {
  const signatures = keys.map((key) => {
    const hmac = createHmac('sha256', key).update(`${id}.${unixSeconds}.`).update(body);
    return `v1,${hmac.digest('base64')}`;
  });
  return {
    'webhook-id': id,
    'webhook-timestamp': String(unixSeconds),
    'webhook-signature': signatures.join(' '),
  };
}
