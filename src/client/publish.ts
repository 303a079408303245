import { quoteIdentifier } from '../core/identity.js';
import { currentMessage } from './handling.js';
import type { Queryable } from './queryable.js';

/** A message to go out. What is left out has the default of `waybill.publish`. */
export interface OutgoingMessage {
  /** Such as `order.paid`: the AMQP type, and the routing key unless the relay is told otherwise. */
  type: string;
  /** Becomes JSON. At most one of `payload`, `payloadText` and `payloadBytes`. */
  payload?: unknown;
  /** JSON that is written already; goes out as it is. */
  payloadText?: string;
  payloadBytes?: Uint8Array;
  /** The unit of ordering, such as the number of an order. */
  key?: string;
  /** A UUID of the application's own. */
  id?: string;
  schemaVersion?: number;
  headers?: Readonly<Record<string, string | number | boolean | null>>;
  contentType?: string;
  contentEncoding?: string;
  exchange?: string;
  routingKey?: string;
  /** This, causation and trace default to the message that is being handled, if one is. */
  correlationId?: string;
  causationId?: string;
  traceparent?: string;
  tracestate?: string;
  replyTo?: string;
  priority?: number;
  /** Not delivered after. */
  expiresAt?: Date;
  /** Not delivered before. */
  deliverAt?: Date;
  occurredAt?: Date;
}

export interface SchemaOption {
  /** The schema of the Waybill tables; `waybill` by default. */
  schema?: string;
}

/**
 * Writes a message to the outbox in the transaction that `client` is in, and resolves to its id: it goes out if, and only
 * if, that transaction commits. Rejects with the error of PostgreSQL.
 */
export async function publish(
  client: Queryable,
  message: OutgoingMessage,
  { schema = 'waybill' }: SchemaOption = {},
): Promise<string> {
  const given = Object.entries(argumentsOf(message)).filter(([, value]) => value !== undefined);
  const list = given.map(([name], index) => `${name} => $${index + 1}`).join(', ');
  const { rows } = await client.query(
    `select ${quoteIdentifier(schema)}.publish(${list})::pg_catalog.text as id`,
    given.map(([, value]) => value),
  );
  return String(rows[0]?.['id']);
}

const MAX_PROPERTY_BYTES = 255;

function argumentsOf(message: OutgoingMessage): Record<string, unknown> {
  const { payload, payloadText, payloadBytes, headers } = message;
  if ([payload, payloadText, payloadBytes].filter((each) => each !== undefined).length > 1) {
    throw new TypeError('give one of payload, payloadText and payloadBytes');
  }
  const cause = currentMessage();
  return {
    type: message.type,
    payload: payloadText ?? (payload === undefined ? undefined : JSON.stringify(payload)),
    payload_bytes: payloadBytes && Buffer.from(payloadBytes),
    key: message.key,
    id: message.id,
    schema_version: message.schemaVersion,
    headers: headers && JSON.stringify(headers),
    content_type: message.contentType,
    content_encoding: message.contentEncoding,
    exchange: message.exchange,
    routing_key: message.routingKey,
    correlation_id: message.correlationId ?? fitting(cause?.correlationId) ?? fitting(cause?.messageId),
    causation_id: message.causationId ?? fitting(cause?.messageId),
    traceparent: message.traceparent ?? fitting(cause?.traceparent),
    // The state belongs to its parent.
    tracestate:
      message.tracestate ?? (message.traceparent === undefined ? (cause?.tracestate ?? undefined) : undefined),
    reply_to: message.replyTo,
    priority: message.priority,
    expires_at: message.expiresAt?.toISOString(),
    deliver_at: message.deliverAt?.toISOString(),
    occurred_at: message.occurredAt?.toISOString(),
  };
}

/** A default must not make a message unsendable: what does not fit into a property of AMQP is left out. */
function fitting(value: string | null | undefined): string | undefined {
  return value != null && Buffer.byteLength(value) <= MAX_PROPERTY_BYTES ? value : undefined;
}
