import type { Fault } from './fault.js';

/** Encoded headers may take this much; the client throws a little above it. Bytes. */
const MAX_HEADERS_BYTES = 60 * 1024;
const MAX_NAME_BYTES = 255;

/** Names with a meaning to the broker or to Waybill; a BCC from a row would copy the message to another queue. */
const RESERVED = new Set(
  'bcc cc user_id user-id x-death x-delay x-match x-received-from x-delivery-count x-stream-offset'.split(' '),
);
const RESERVED_PREFIXES = ['x-waybill-', 'x-first-death', 'x-last-death'];

export function isReservedHeader(name: string): boolean {
  const lower = name.toLowerCase();
  return RESERVED.has(lower) || RESERVED_PREFIXES.some((prefix) => lower.startsWith(prefix));
}

/**
 * AMQP headers from the text of a jsonb object. Scalars only; null is left out. A number that a double cannot carry
 * exactly (9007199254740993, 1.10) goes as the string that PostgreSQL keeps, so nothing is rounded.
 */
export function readHeaders(text: string): { headers: Record<string, string | number | boolean> } | Fault {
  if (text === '{}') return { headers: {} };
  // Why no prototype: a header may be named __proto__.
  const headers = Object.create(null) as Record<string, string | number | boolean>;
  if (Buffer.byteLength(text) > MAX_HEADERS_BYTES) {
    return { fault: 'bad_header', text: `headers have ${Buffer.byteLength(text)} bytes; at most ${MAX_HEADERS_BYTES}` };
  }
  const parsed: unknown = JSON.parse(keepNumbers(text));
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) {
    return { fault: 'bad_header', text: 'headers are not a JSON object' };
  }
  for (const [name, value] of Object.entries(parsed)) {
    const bytes = Buffer.byteLength(name);
    if (bytes === 0 || bytes > MAX_NAME_BYTES) {
      return { fault: 'bad_header', text: `a header name has ${bytes} bytes; 1 to ${MAX_NAME_BYTES} are possible` };
    }
    if (isReservedHeader(name)) return { fault: 'reserved_header', text: `header ${JSON.stringify(name)} is reserved` };
    if (value === null) continue;
    if (typeof value === 'string') headers[name] = value.startsWith(NUMBER_MARK) ? toNumber(value.slice(1)) : value;
    else if (typeof value === 'boolean') headers[name] = value;
    else return { fault: 'bad_header', text: `header ${JSON.stringify(name)} is not a scalar` };
  }
  return { headers };
}

/** jsonb cannot hold NUL, so a string that begins with it is a number that we quoted. */
const NUMBER_MARK = '\u0000';
const STRING_OR_NUMBER = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

function keepNumbers(text: string): string {
  return text.replace(STRING_OR_NUMBER, (token) => (token.startsWith('"') ? token : `"\\u0000${token}"`));
}

function toNumber(text: string): number | string {
  const number = Number(text);
  const exact = Number.isInteger(number) ? Number.isSafeInteger(number) : Number.isFinite(number);
  return exact && String(number) === text ? number : text;
}
