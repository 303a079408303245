import { Never } from './verdict.js';

/** A message as a handler gets it. */
export interface ReceivedMessage {
  /** Its place in the inbox. */
  readonly seq: bigint;
  readonly consumer: string;
  /** The id under which it counts once for its consumer. */
  readonly messageId: string;
  readonly type: string | null;
  readonly key: string | null;
  readonly schemaVersion: number | null;
  /** As received, byte for byte. */
  readonly body: Buffer;
  readonly contentType: string | null;
  readonly contentEncoding: string | null;
  readonly headers: Readonly<Record<string, unknown>>;
  readonly exchange: string | null;
  readonly routingKey: string | null;
  readonly correlationId: string | null;
  readonly causationId: string | null;
  readonly replyTo: string | null;
  readonly appId: string | null;
  readonly occurredAt: Date | null;
  readonly receivedAt: Date;
  readonly traceparent: string | null;
  readonly tracestate: string | null;
  /** From 1. */
  readonly attempt: number;
  /** The body as JSON. Throws Never when it is encoded, not UTF-8 or not JSON. JavaScript rounds numbers over 2^53. */
  json(): unknown;
}

/** A message with the proof that it is ours for now. */
export interface Claim {
  message: ReceivedMessage;
  token: string;
}

/**
 * What is selected from `inbox_claim`, as texts: parsers of types that an application has set for its pool do not reach
 * them.
 */
export const CLAIM_COLUMNS = [
  ...['seq', 'claim_token', 'attempt', 'schema_version', 'headers'].map((name) => `${name}::pg_catalog.text`),
  ...['occurred_at', 'received_at'].map((name) => `extract(epoch from ${name})::pg_catalog.text as ${name}`),
  "consumer, message_id, type, key, pg_catalog.encode(body, 'base64') as body, content_type, content_encoding",
  'exchange, routing_key, correlation_id, causation_id, reply_to, app_id, traceparent, tracestate',
].join(', ');

type Row = Readonly<Record<string, unknown>>;

/** Reads one row of CLAIM_COLUMNS. */
export function toClaim(row: Row): Claim {
  const body = Buffer.from(text(row, 'body') ?? '', 'base64');
  const contentEncoding = text(row, 'content_encoding');
  const version = text(row, 'schema_version');
  const message: ReceivedMessage = {
    seq: BigInt(text(row, 'seq') ?? ''),
    consumer: text(row, 'consumer') ?? '',
    messageId: text(row, 'message_id') ?? '',
    type: text(row, 'type'),
    key: text(row, 'key'),
    schemaVersion: version === null ? null : Number(version),
    body,
    contentType: text(row, 'content_type'),
    contentEncoding,
    headers: JSON.parse(text(row, 'headers') ?? '{}') as Record<string, unknown>,
    exchange: text(row, 'exchange'),
    routingKey: text(row, 'routing_key'),
    correlationId: text(row, 'correlation_id'),
    causationId: text(row, 'causation_id'),
    replyTo: text(row, 'reply_to'),
    appId: text(row, 'app_id'),
    occurredAt: date(row, 'occurred_at'),
    receivedAt: date(row, 'received_at') ?? new Date(0),
    traceparent: text(row, 'traceparent'),
    tracestate: text(row, 'tracestate'),
    attempt: Number(text(row, 'attempt')),
    json: () => parseJson(body, contentEncoding),
  };
  return { message, token: text(row, 'claim_token') ?? '' };
}

const PLAIN_ENCODINGS = ['', 'identity', 'utf-8', 'utf8', 'us-ascii', 'ascii'];

function parseJson(body: Buffer, encoding: string | null): unknown {
  if (!PLAIN_ENCODINGS.includes(encoding?.toLowerCase() ?? '')) {
    throw new Never(`the body is encoded (${String(encoding)}): decode message.body`);
  }
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(body)) as unknown;
  } catch {
    throw new Never('the body is not JSON in UTF-8');
  }
}

function text(row: Row, column: string): string | null {
  const value = row[column];
  return typeof value === 'string' ? value : null;
}

function date(row: Row, column: string): Date | null {
  const seconds = text(row, column);
  return seconds === null ? null : new Date(Math.trunc(Number(seconds) * 1_000));
}
