import type { OutboxRow } from '../core/message.js';

/**
 * Every column that makes a message or is written back; without any of these a message could differ from its row. Found
 * by name, so that further columns do no harm.
 */
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

/** The other columns of the outbox: what the relay makes of a row. */
export const STATE_COLUMNS: readonly string[] = ['state', 'last_error', 'next_attempt_at', 'hold_no'];

export type OutboxColumn = (typeof OUTBOX_COLUMNS)[number];

/** Every column that the log must bring: the state is no part of the message, and decides whether there is one. */
export const STREAM_COLUMNS = [...OUTBOX_COLUMNS, 'state'] as const;

/** One row's values by the column's number in OUTBOX_COLUMNS, as PostgreSQL's text output. */
export interface Columns {
  text(slot: number): string | null;
  /** A copy of the bytes of that text, which outlives the receive buffer. */
  bytes(slot: number): Buffer | null;
}

const SLOT = Object.fromEntries(OUTBOX_COLUMNS.map((name, slot) => [name, slot])) as Record<OutboxColumn, number>;

/** Builds a row from PostgreSQL's text output, wherever it came from. */
export function rowFromColumns(columns: Columns): OutboxRow {
  const json = columns.bytes(SLOT.payload);
  const hex = json ? null : columns.text(SLOT.payload_bytes);
  return {
    seq: columns.text(SLOT.seq) ?? '',
    id: columns.text(SLOT.id) ?? '',
    type: columns.text(SLOT.type) ?? '',
    key: columns.text(SLOT.key),
    schemaVersion: Number(columns.text(SLOT.schema_version) ?? 1),
    body: json ?? (hex === null ? EMPTY : fromHex(hex)),
    bodyKind: json ? 'json' : hex === null ? 'none' : 'bytes',
    contentType: columns.text(SLOT.content_type),
    contentEncoding: columns.text(SLOT.content_encoding),
    headers: columns.text(SLOT.headers) ?? '{}',
    exchange: columns.text(SLOT.exchange),
    routingKey: columns.text(SLOT.routing_key),
    correlationId: columns.text(SLOT.correlation_id),
    causationId: columns.text(SLOT.causation_id),
    replyTo: columns.text(SLOT.reply_to),
    traceparent: columns.text(SLOT.traceparent),
    tracestate: columns.text(SLOT.tracestate),
    priority: optionalNumber(columns.text(SLOT.priority)),
    expiresAt: columns.text(SLOT.expires_at),
    deliverAt: columns.text(SLOT.deliver_at),
    occurredAt: columns.text(SLOT.occurred_at) ?? '',
    createdAt: columns.text(SLOT.created_at) ?? '',
    attempts: Number(columns.text(SLOT.attempts) ?? 0),
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
