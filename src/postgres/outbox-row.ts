import type { OutboxRow } from '../core/message.js';

/** Every column that makes a message or is written back; read by name, so that further columns do no harm. */
export const OUTBOX_COLUMNS = [
  'seq',
  'id',
  'type',
  'key',
  'schema_version',
  'payload',
  'payload_bytes',
  'content_type',
  'content_encoding',
  'headers',
  'exchange',
  'routing_key',
  'correlation_id',
  'causation_id',
  'reply_to',
  'traceparent',
  'tracestate',
  'priority',
  'expires_at',
  'deliver_at',
  'occurred_at',
  'created_at',
  'attempts',
] as const;

export type OutboxColumn = (typeof OUTBOX_COLUMNS)[number];

/** Without any of these a message could differ from its row. */
export const REQUIRED_COLUMNS: readonly OutboxColumn[] = OUTBOX_COLUMNS;

/**
 * Builds a row from PostgreSQL's text output, wherever it came from. `text` gives a column as a string, `bytes` the raw
 * bytes of that text. The body is copied: it outlives the receive buffer.
 */
export function rowFromColumns(
  text: (name: OutboxColumn) => string | null,
  bytes: (name: OutboxColumn) => Buffer | null,
): OutboxRow {
  const json = bytes('payload');
  const hex = json ? null : text('payload_bytes');
  return {
    seq: text('seq') ?? '',
    id: text('id') ?? '',
    type: text('type') ?? '',
    key: text('key'),
    schemaVersion: Number(text('schema_version') ?? 1),
    body: json ? Buffer.from(json) : hex === null ? EMPTY : fromHex(hex),
    bodyKind: json ? 'json' : hex === null ? 'none' : 'bytes',
    contentType: text('content_type'),
    contentEncoding: text('content_encoding'),
    headers: text('headers') ?? '{}',
    exchange: text('exchange'),
    routingKey: text('routing_key'),
    correlationId: text('correlation_id'),
    causationId: text('causation_id'),
    replyTo: text('reply_to'),
    traceparent: text('traceparent'),
    tracestate: text('tracestate'),
    priority: optionalNumber(text('priority')),
    expiresAt: text('expires_at'),
    deliverAt: text('deliver_at'),
    occurredAt: text('occurred_at') ?? '',
    createdAt: text('created_at') ?? '',
    attempts: Number(text('attempts') ?? 0),
  };
}

const EMPTY = Buffer.alloc(0);

function optionalNumber(text: string | null): number | null {
  return text === null ? null : Number(text);
}

/** bytea_output is pinned to hex: `\x` and two digits a byte. */
function fromHex(text: string): Buffer {
  if (!text.startsWith('\\x')) throw new Error('bytea did not come in hex form, although bytea_output is pinned');
  return Buffer.from(text.slice(2), 'hex');
}
