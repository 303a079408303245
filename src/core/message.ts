import { readHeaders } from './headers.js';
import type { Fault } from './fault.js';

/**
 * One row of waybill.outbox as the relay holds it. Values are PostgreSQL's text output under the pinned settings, the
 * same from the log and from a query, so that both sources make the same message (O7).
 */
export interface OutboxRow {
  /** bigint as text: the position in the table. */
  seq: string;
  /** The AMQP message_id, fixed at insert. */
  id: string;
  type: string;
  key: string | null;
  schemaVersion: number;
  /** Exactly the bytes that were written; empty when there is no payload. */
  body: Buffer;
  bodyKind: 'json' | 'bytes' | 'none';
  contentType: string | null;
  contentEncoding: string | null;
  /** The jsonb object as text. */
  headers: string;
  exchange: string | null;
  routingKey: string | null;
  correlationId: string | null;
  causationId: string | null;
  replyTo: string | null;
  traceparent: string | null;
  tracestate: string | null;
  priority: number | null;
  expiresAt: string | null;
  deliverAt: string | null;
  occurredAt: string;
  createdAt: string;
  /** Failures so far; 0 for a row that never failed. */
  attempts: number;
}

/** What goes to the broker. A function of the row and the relay's defaults alone: every copy is the same. */
export interface Message {
  messageId: string;
  exchange: string;
  routingKey: string;
  body: Buffer;
  type: string;
  contentType: string;
  contentEncoding: string | null;
  headers: Record<string, string | number | boolean>;
  correlationId: string | null;
  replyTo: string | null;
  priority: number | null;
  /** Whole seconds since 1970, or null when the business time does not fit. */
  timestamp: number | null;
}

/** What the relay fills in where a row leaves a column null. */
export interface MessageDefaults {
  exchange: string;
  /** Template over `{type}`, `{key}` and `{schema_version}`. */
  routingKey: string;
  maxBodyBytes: number;
}

const SHORT_STRING_BYTES = 255;
/** RabbitMQ's direct reply-to: it closes the channel of a publisher that does not itself wait there for answers. */
const DIRECT_REPLY_TO = 'amq.rabbitmq.reply-to';

/** Makes the message of a row, or says why no broker would take it. */
export function toMessage(row: OutboxRow, defaults: MessageDefaults): Message | Fault {
  if (row.body.length > defaults.maxBodyBytes) {
    return fault('too_large', `the body has ${row.body.length} bytes; at most ${defaults.maxBodyBytes} may go out`);
  }
  const message: Message = {
    messageId: row.id,
    exchange: row.exchange ?? defaults.exchange,
    routingKey: row.routingKey ?? fillTemplate(defaults.routingKey, row),
    body: row.body,
    type: row.type,
    contentType: row.contentType ?? (row.bodyKind === 'bytes' ? 'application/octet-stream' : 'application/json'),
    contentEncoding: row.contentEncoding,
    headers: {},
    correlationId: row.correlationId,
    replyTo: row.replyTo,
    priority: row.priority,
    timestamp: toTimestamp(row.occurredAt),
  };
  for (const [name, value] of shortStrings(message)) {
    const bytes = Buffer.byteLength(value);
    if (bytes > SHORT_STRING_BYTES) {
      return fault('name_too_long', `${name} has ${bytes} bytes; AMQP takes at most ${SHORT_STRING_BYTES}`);
    }
  }
  if (row.priority !== null && (row.priority < 0 || row.priority > 255)) {
    return fault('bad_property', `priority ${row.priority} is not between 0 and 255`);
  }
  if (row.replyTo === DIRECT_REPLY_TO) {
    return fault(
      'bad_property',
      `reply_to ${DIRECT_REPLY_TO} is for who publishes and waits for the answer on one channel; name a queue instead`,
    );
  }
  const read = readHeaders(row.headers);
  if (isFault(read)) return read;
  const headers = read.headers;
  message.headers = headers;
  if (row.key !== null) headers['x-waybill-key'] = row.key;
  headers['x-waybill-schema-version'] = row.schemaVersion;
  if (row.causationId !== null) headers['x-waybill-causation-id'] = row.causationId;
  if (row.traceparent !== null) headers['traceparent'] = row.traceparent;
  if (row.tracestate !== null) headers['tracestate'] = row.tracestate;
  return message;
}

export function isFault(value: object): value is Fault {
  return 'fault' in value;
}

/** Milliseconds since 1970 of a timestamptz printed in ISO style and UTC; infinities keep their sign. */
export function timestampMs(text: string): number {
  // Years past 9999 are further than anybody waits, and not of the form that Date reads.
  if (text === 'infinity' || /^\d{5}/.test(text)) return Infinity;
  if (text === '-infinity' || text.endsWith(' BC')) return -Infinity;
  return Date.parse(text.replace(' ', 'T').replace(/\+00$/, 'Z'));
}

function toTimestamp(text: string): number | null {
  const seconds = Math.floor(timestampMs(text) / 1000);
  return Number.isSafeInteger(seconds) && seconds >= 0 ? seconds : null;
}

function fillTemplate(template: string, row: OutboxRow): string {
  return template
    .replaceAll('{type}', () => row.type)
    .replaceAll('{key}', () => row.key ?? '')
    .replaceAll('{schema_version}', () => String(row.schemaVersion));
}

function shortStrings(message: Message): [string, string][] {
  const all: [string, string | null][] = [
    ['exchange', message.exchange],
    ['routing_key', message.routingKey],
    ['type', message.type],
    ['content_type', message.contentType],
    ['content_encoding', message.contentEncoding],
    ['correlation_id', message.correlationId],
    ['reply_to', message.replyTo],
  ];
  return all.filter((pair): pair is [string, string] => pair[1] !== null);
}

function fault(code: Fault['fault'], text: string): Fault {
  return { fault: code, text };
}
