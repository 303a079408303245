import { webhookHeaders } from '../core/webhook-signature.js';
import type { InboxMessage } from './ports.js';

const TRACEPARENT = /^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/;
/** Printable ASCII: all that a header field takes without a second thought. */
const FIELD = /^[\x20-\x7e]+$/;
const MAX_FIELD = 1_024;
const MAX_TRACESTATE = 512;

/**
 * The headers of one attempt. Ids, types and keys may hold any character: what is not printable ASCII, and `%` itself, is
 * percent-encoded, so that decodeURIComponent gives the value back. `keys` are empty where nothing is signed.
 */
export function requestHeaders(
  message: InboxMessage,
  { keys, unixSeconds }: { keys: readonly Buffer[]; unixSeconds: number },
): Record<string, string> {
  const { body } = message;
  const id = fieldValue(message.messageId);
  const consumer = fieldValue(message.consumer);
  const given: Record<string, string | null> = {
    accept: '*/*',
    'user-agent': 'waybill',
    'content-length': String(body.length),
    'content-type': passable(message.contentType, MAX_FIELD),
    'content-encoding': passable(message.contentEncoding, MAX_FIELD),
    'idempotency-key': `${consumer}:${id}`,
    'x-waybill-consumer': consumer,
    'x-waybill-id': id,
    'x-waybill-type': fieldValue(message.type),
    'x-waybill-key': fieldValue(message.key),
    'x-waybill-schema-version': message.schemaVersion === null ? null : String(message.schemaVersion),
    'x-waybill-attempt': String(message.attempt),
    'x-waybill-occurred-at': message.occurredAt?.toISOString() ?? null,
    'x-waybill-correlation-id': fieldValue(message.correlationId),
    'x-waybill-causation-id': fieldValue(message.causationId),
    ...traceHeaders(message),
    ...(keys.length === 0 ? {} : webhookHeaders(keys, { id, unixSeconds, body })),
  };
  return Object.fromEntries(Object.entries(given).filter((pair): pair is [string, string] => pair[1] !== null));
}

/** tracestate means nothing without its traceparent. */
function traceHeaders({ traceparent, tracestate }: InboxMessage): Record<string, string | null> {
  if (traceparent === null || !TRACEPARENT.test(traceparent)) return {};
  return { traceparent, tracestate: passable(tracestate, MAX_TRACESTATE) };
}

/** A value that goes as it is, or not at all. */
function passable(value: string | null, maxLength: number): string | null {
  return value !== null && value.length <= maxLength && FIELD.test(value) ? value : null;
}

function fieldValue(value: string): string;
function fieldValue(value: string | null): string | null;
function fieldValue(value: string | null): string | null {
  // Spaces at the ends are lost on the way, so they are encoded, too.
  if (value === null) return null;
  // Through bytes, because half a surrogate pair cannot be encoded.
  return Buffer.from(value)
    .toString()
    .replaceAll(/[^\x20-\x7e]+|%|^ +| +$/g, encodeURIComponent);
}
