import { createHash } from 'node:crypto';
import { isUint8Array } from 'node:util/types';
import { refusal, type Acceptance } from './acceptance.js';
import { identify, type Identification, type IdNamespace } from './identification.js';

/** One arrival, as the broker gave it; properties that are absent are undefined. */
export interface Delivery {
  /** Belongs to the channel on which it came. */
  deliveryTag: number;
  redelivered: boolean;
  exchange: string;
  routingKey: string;
  properties: DeliveryProperties;
  body: Buffer;
}

export interface DeliveryProperties {
  messageId?: unknown;
  type?: unknown;
  contentType?: unknown;
  contentEncoding?: unknown;
  correlationId?: unknown;
  replyTo?: unknown;
  appId?: unknown;
  priority?: unknown;
  /** Seconds since 1970. */
  timestamp?: unknown;
  headers?: Readonly<Record<string, unknown>> | undefined;
  /** Headers that are not among `headers`, because they could not be decoded. */
  unreadableHeaders?: readonly UnreadableHeader[] | undefined;
}

/** A header as it was on the wire: type and value, undecoded. */
export interface UnreadableHeader {
  name: string;
  field: Buffer;
}

/** A delivery as a row of the inbox. Made by the delivery and the consumer's rules alone, so that a copy is the same. */
export interface InboundRow {
  messageId: string;
  /** The id that the message came with, where `messageId` had to be made. */
  originalId: string | null;
  /** Why the row is kept as dead at once. */
  dead: { reason: 'no-id' | 'malformed' | 'not-accepted' | 'broker'; text: string } | null;
  type: string | null;
  key: string | null;
  schemaVersion: number | null;
  body: Buffer;
  contentType: string | null;
  contentEncoding: string | null;
  /** A JSON object. */
  headers: string;
  exchange: string;
  routingKey: string;
  correlationId: string | null;
  causationId: string | null;
  replyTo: string | null;
  appId: string | null;
  priority: number | null;
  /** ISO 8601, or null when the timestamp is no date. */
  occurredAt: string | null;
  traceparent: string | null;
  tracestate: string | null;
  /** Everything but the body, readable, of a message that cannot be text. */
  rawProperties: string | null;
}

/** What a consumer takes in, and how it tells messages apart. */
export interface IntakeRules {
  identification: Identification;
  idNamespace: IdNamespace;
  accept: readonly Acceptance[];
  maxBodyBytes: number;
}

/** Levels of objects in headers, they themselves the first. Deeper ones are not JSON that anybody reads. */
export const MAX_HEADER_DEPTH = 16;
const NOT_TEXT = 'cannot be text in PostgreSQL (a NUL or half a character)';
/** Of key and type, as the table's constraints say. */
const MAX_TEXT_BYTES = 1_024;
const LAST_SECOND = 253_402_300_799;
const MAX_VERSION = 2_147_483_647;

/** Makes the row of a delivery; what cannot be worked with becomes a row that is dead at once, never an error. */
export function toInboundRow(delivery: Delivery, rules: IntakeRules): InboundRow {
  const { properties, body, exchange, routingKey } = delivery;
  const headers = properties.headers ?? {};
  const row: InboundRow = {
    messageId: '',
    originalId: null,
    dead: null,
    type: asText(properties.type),
    key: asText(own(headers, 'x-waybill-key')),
    schemaVersion: asVersion(own(headers, 'x-waybill-schema-version')),
    body,
    contentType: asText(properties.contentType),
    contentEncoding: asText(properties.contentEncoding),
    headers: '{}',
    exchange,
    routingKey,
    correlationId: asText(properties.correlationId),
    causationId: asText(own(headers, 'x-waybill-causation-id')),
    replyTo: asText(properties.replyTo),
    appId: asText(properties.appId),
    priority: typeof properties.priority === 'number' ? properties.priority : null,
    occurredAt: asDate(properties.timestamp),
    traceparent: asText(own(headers, 'traceparent')),
    tracestate: asText(own(headers, 'tracestate')),
    rawProperties: null,
  };
  const json = toJson(headers);
  const unreadable = properties.unreadableHeaders ?? [];
  if (unreadable.length > 0) return malformed(row, properties, unreadableText(unreadable));
  if (json === undefined) return malformed(row, properties, 'its headers are nested too deeply');
  row.headers = json;
  const untextual = namesWithoutText(row);
  if (untextual.length > 0) {
    return malformed(row, properties, `${untextual.join(', ')} ${NOT_TEXT}`);
  }
  const long = (['key', 'type'] as const).find((name) => !isShort(row[name]));
  if (long) return malformed(row, properties, `its ${long} has more than ${MAX_TEXT_BYTES} bytes`);
  if (body.length > rules.maxBodyBytes) {
    // With its body: it is acknowledged, so it is nowhere else.
    return malformed(row, properties, `its body has ${body.length} bytes, and maxBodyBytes is ${rules.maxBodyBytes}`);
  }
  const id = identify(rules.identification, rules.idNamespace, {
    ...row,
    messageId: asText(properties.messageId),
    headers,
  });
  if (id === undefined) {
    const text = 'it has no id where the consumer looks for one';
    return { ...row, messageId: syntheticId('no-id', row, properties), dead: { reason: 'no-id', text } };
  }
  if (!isText(id, false)) return malformed(row, properties, `its id ${NOT_TEXT}`);
  // What the client reads for bytes that are no UTF-8: two ids could be one.
  if (id.includes('\ufffd')) return malformed(row, properties, 'its id is not UTF-8');
  row.messageId = id;
  const refused = refusal(rules.accept, row);
  if (refused !== undefined) row.dead = { reason: 'not-accepted', text: refused };
  return row;
}

/** For people: the names are anybody's words. */
function unreadableText(unreadable: readonly UnreadableHeader[]): string {
  const [first] = unreadable;
  const name = JSON.stringify(first?.name.slice(0, 100));
  const which =
    unreadable.length === 1 ? `its header ${name} is` : `${unreadable.length} of its headers, ${name} first, are`;
  return `${which} nested more than ${MAX_HEADER_DEPTH} levels deep or cannot be decoded; raw_properties has the bytes`;
}

/**
 * The row of a message that cannot be a row as it is. Everything that came as text is kept in `rawProperties`, with what
 * PostgreSQL refuses made readable; the body stays as it is.
 */
export function malformed(row: InboundRow, properties: DeliveryProperties, text: string): InboundRow {
  return {
    ...row,
    messageId: syntheticId('malformed', row, properties),
    originalId: readable(asText(properties.messageId)),
    dead: { reason: 'malformed', text },
    type: short(readable(row.type)),
    key: short(readable(row.key)),
    contentType: null,
    contentEncoding: null,
    headers: '{}',
    exchange: readable(row.exchange) ?? '',
    routingKey: readable(row.routingKey) ?? '',
    correlationId: null,
    causationId: null,
    replyTo: null,
    appId: null,
    traceparent: null,
    tracestate: null,
    rawProperties: readableJson(toJson(properties, MAX_HEADER_DEPTH + 1) ?? '{}'),
  };
}

/** The least that a message can be, when PostgreSQL refuses what was to be kept of it besides: its body, under an id. */
export function bare(row: InboundRow): InboundRow {
  return {
    ...row,
    originalId: null,
    type: null,
    key: null,
    exchange: '',
    routingKey: '',
    priority: null,
    occurredAt: null,
    schemaVersion: null,
    rawProperties: null,
  };
}

/** The same for every copy of a message, so that a redelivery finds its row. */
function syntheticId(kind: string, row: InboundRow, properties: DeliveryProperties): string {
  const hash = createHash('sha256');
  hash.update(
    JSON.stringify([row.exchange, row.routingKey, toJson(withoutDelivery(properties), MAX_HEADER_DEPTH + 1) ?? '']),
  );
  hash.update(row.body);
  return `${kind}:${hash.digest('hex')}`;
}

/** Headers that the broker changes from delivery to delivery. */
function withoutDelivery(properties: DeliveryProperties): DeliveryProperties {
  const headers = Object.fromEntries(
    Object.entries(properties.headers ?? {}).filter(([name]) => name !== 'x-delivery-count' && name !== 'x-death'),
  );
  return { ...properties, headers };
}

const TEXT_COLUMNS = [
  'type',
  'key',
  'contentType',
  'contentEncoding',
  'headers',
  'exchange',
  'routingKey',
  'correlationId',
  'causationId',
  'replyTo',
  'appId',
  'traceparent',
  'tracestate',
] as const;

function namesWithoutText(row: InboundRow): string[] {
  return TEXT_COLUMNS.filter((name) => !isText(row[name], name === 'headers'));
}

/** In JSON text a NUL and a lone surrogate are escapes; what is well-formed is written as it is. */
const UNTEXTUAL_ESCAPE = /((?<!\\)(?:\\\\)*)\\u(?:0000|d[89a-f][0-9a-f]{2})/gi;

/** F60, fact 78: PostgreSQL keeps neither a NUL nor half a character. */
function isText(value: string | null, isJson: boolean): boolean {
  if (value === null) return true;
  if (isJson) return value.search(UNTEXTUAL_ESCAPE) === -1;
  return !value.includes('\0') && value.isWellFormed();
}

function isShort(value: string | null): boolean {
  return value === null || Buffer.byteLength(value) <= MAX_TEXT_BYTES;
}

/** What is too long is in `rawProperties` only. */
function short(value: string | null): string | null {
  return isShort(value) ? value : null;
}

function readable(value: string | null): string | null {
  return value?.toWellFormed().replaceAll('\0', '\u2400') ?? null;
}

function readableJson(json: string): string {
  return json.replaceAll(UNTEXTUAL_ESCAPE, '$1\u2400');
}

/** Headers as JSON; bytes and other values that JSON has no word for are written in a readable way. */
function toJson(value: object, levels = MAX_HEADER_DEPTH): string | undefined {
  return isDeeperThan(value, levels) ? undefined : JSON.stringify(plain(value));
}

/**
 * A copy of plain objects. Why no replacer: it is asked after a value's own toJSON, and a sender may give a table the look,
 * or by a header `__proto__` the prototype, of bytes.
 */
function plain(value: unknown): unknown {
  if (typeof value === 'bigint') return value.toString();
  if (isUint8Array(value)) return { '!': 'bytes', base64: Buffer.from(value).toString('base64') };
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, child]) => [name, plain(child)]));
}

function isDeeperThan(value: unknown, levels: number): boolean {
  if (typeof value !== 'object' || value === null || isUint8Array(value)) return false;
  return levels === 0 || Object.values(value).some((child) => isDeeperThan(child, levels - 1));
}

function own(headers: Readonly<Record<string, unknown>>, name: string): unknown {
  return Object.hasOwn(headers, name) ? headers[name] : undefined;
}

function asText(value: unknown): string | null {
  if (typeof value === 'string') return value;
  return typeof value === 'number' || typeof value === 'boolean' ? String(value) : null;
}

function asVersion(value: unknown): number | null {
  const number = typeof value === 'string' && /^\d{1,10}$/.test(value) ? Number(value) : value;
  return typeof number === 'number' && Number.isInteger(number) && number >= 0 && number <= MAX_VERSION ? number : null;
}

function asDate(seconds: unknown): string | null {
  if (typeof seconds !== 'number' || !Number.isInteger(seconds) || seconds < 0 || seconds > LAST_SECOND) return null;
  return new Date(seconds * 1000).toISOString();
}
