import { toInboundRow, type Delivery, type DeliveryProperties, type IntakeRules } from '../core/delivery.js';
import type { Message } from '../core/message.js';
import type { Arrival, Death } from './ports.js';

const MOST_HEADER_CHARACTERS = 1_000;
/** Of the message's own headers: all headers of a message go in one frame, whose size broker and client limit. */
const MOST_HEADERS_BYTES = 16 * 1024;

/** The message as it was received, with the reason in headers of ours. Scalars of its own headers go along, unless it was refused with them. */
export function toCopy(death: Death, exchange: string): Message {
  const { message } = death;
  const headers: Record<string, string | number | boolean> = {};
  let bytes = 0;
  for (const [name, value] of death.refused > 0 ? [] : Object.entries(message.headers)) {
    // Fact 42: what the broker gives a meaning to must not travel on.
    if (/^(x-death|x-first-death.*|x-last-death.*|x-delivery-count|x-delay|cc|bcc|x-match)$/i.test(name)) continue;
    if (Buffer.byteLength(name) > 255 || name.startsWith('x-waybill-dead-')) continue;
    const isPlain = typeof value === 'boolean' || (typeof value === 'number' && Number.isFinite(value));
    if (!isPlain && !(typeof value === 'string' && value.length <= MOST_HEADER_CHARACTERS)) continue;
    const more = Buffer.byteLength(name) + (typeof value === 'string' ? Buffer.byteLength(value) : 8);
    if (bytes + more > MOST_HEADERS_BYTES) continue;
    bytes += more;
    headers[name] = value;
  }
  headers['x-waybill-dead-consumer'] = message.consumer;
  headers['x-waybill-dead-reason'] = death.deadReason;
  headers['x-waybill-dead-attempts'] = death.failures;
  headers['x-waybill-dead-at'] = death.diedAt;
  headers['x-waybill-dead-exchange'] = death.exchange.slice(0, MOST_HEADER_CHARACTERS);
  headers['x-waybill-dead-routing-key'] = death.routingKey.slice(0, MOST_HEADER_CHARACTERS);
  if (death.error !== null) headers['x-waybill-dead-error'] = death.error.slice(0, MOST_HEADER_CHARACTERS);
  return {
    messageId: cut(death.originalId ?? message.messageId),
    exchange,
    routingKey: `dead.${message.consumer}`,
    body: message.body,
    type: cut(message.type ?? ''),
    contentType: cut(message.contentType ?? 'application/octet-stream'),
    contentEncoding: message.contentEncoding === null ? null : cut(message.contentEncoding),
    headers,
    correlationId: message.correlationId === null ? null : cut(message.correlationId),
    replyTo: null,
    priority: null,
    timestamp: message.occurredAt === null ? null : Math.floor(message.occurredAt.getTime() / 1000),
  };
}

/** AMQP's short strings take 255 bytes. */
function cut(text: string): string {
  return Buffer.byteLength(text) <= 255
    ? text
    : Buffer.from(text)
        .subarray(0, 250)
        .toString('utf8')
        .replace(/\ufffd$/, '');
}

/**
 * What the broker gave up (delivery limit, expiry), as it comes out of the queue for such deaths: the message as it first
 * was, dead for a reason of the broker's. A row that is there already, in any status, wins.
 */
export function fromBrokerDeath(delivery: Delivery, queue: string, rules: IntakeRules): Arrival {
  const { properties } = delivery;
  const death = deathIn(queue, properties);
  const { exchange, routingKey } = death ?? delivery;
  // With the route that it first had: an id that is made of it is the same.
  const row = toInboundRow({ ...delivery, exchange, routingKey }, { ...rules, accept: [] });
  const text = death
    ? `RabbitMQ gave it up: ${death.reason} in queue ${death.queue}`
    : 'RabbitMQ gave it up, for a reason it does not say';
  // What cannot be a row, or has no id, is that first of all.
  return { properties, row: row.dead ? row : { ...row, dead: { reason: 'broker', text } } };
}

/** The last death in this queue; those in other queues are of a life before. The broker puts the newest first. */
function deathIn(
  queue: string,
  properties: DeliveryProperties,
): { reason: string; queue: string; exchange: string; routingKey: string } | undefined {
  const list: unknown = properties.headers?.['x-death'];
  const deaths: unknown[] = Array.isArray(list) ? list : [];
  const entries = deaths.filter((each) => typeof each === 'object' && each !== null) as Record<string, unknown>[];
  const given = entries.find((each) => each['queue'] === queue) ?? entries[0];
  if (!given) return undefined;
  const keys: unknown = given['routing-keys'];
  const key: unknown = Array.isArray(keys) ? keys[0] : undefined;
  const text = (value: unknown): string => (typeof value === 'string' ? value : '');
  return {
    reason: text(given['reason']),
    queue: text(given['queue']),
    exchange: text(given['exchange']),
    routingKey: text(key),
  };
}
