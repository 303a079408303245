import type { Connection } from 'amqplib';
import { MAX_HEADER_DEPTH, type UnreadableHeader } from '../core/delivery.js';

const HEADER_FRAME = 2;
const FRAME_HEAD_BYTES = 7;
/** Of a content header: class, weight and the size of the body. */
const CONTENT_HEAD_BYTES = 12;
const HAS_CONTENT_TYPE = 0x8000;
const HAS_CONTENT_ENCODING = 0x4000;
const HAS_HEADERS = 0x2000;
/** Of a tag and the length behind it. */
const LENGTH_BYTES = 5;
/** Its tag. */
const INT64 = 'l'.charCodeAt(0);

/** Bytes behind the tag of a value of a fixed size. Source: https://www.rabbitmq.com/amqp-0-9-1-errata#section_3 */
const FIXED_BYTES: Readonly<Record<string, number>> = {
  ...{ t: 1, b: 1, B: 1, s: 2, u: 2, I: 4, i: 4, f: 4, l: 8, d: 8, T: 8, D: 5, V: 0 },
};
/** Levels of objects that the client makes of a value: a decimal is one that holds another. */
const LEVELS: Readonly<Record<string, number>> = { T: 1, D: 2, F: 1, A: 1 };

/** What the client keeps of a connection: frames are taken from `rest`, and one by one from `recvFrame`. */
interface FrameReader {
  rest: Buffer;
  recvFrame(): { fields?: object } | false;
}

/**
 * Keeps headers from the client that it cannot decode, and gives it whole numbers that it would round as text. Why: its decoder calls itself for each level, so that some thousand
 * levels in one message end the connection, with everything that is on it, and as the message comes again, every
 * connection after it. Fields that are nested too deeply, or that are no fields, are taken out of the frame before it is
 * decoded and handed on as bytes, in `unreadableHeaders` of the message's properties. And two ids that are rounded to one
 * would be one message.
 */
export function keepUnreadableHeaders(connection: Connection): void {
  const reader = connection as unknown as FrameReader;
  const recvFrame = reader.recvFrame.bind(reader);
  // The client asks itself again after each chunk, so the frame that it takes is the one that was looked at.
  reader.recvFrame = () => {
    const found = withoutUnreadable(reader.rest);
    if (!found) return recvFrame();
    reader.rest = found.rest;
    const frame = recvFrame();
    if (frame && frame.fields && found.unreadable.length > 0) {
      Object.assign(frame.fields, { unreadableHeaders: found.unreadable });
    }
    return frame;
  };
}

/**
 * The bytes with a frame in front whose headers can be decoded exactly, and what was taken out of it; undefined when nothing
 * has to be changed, or the frame is not there in full. Looks at each byte once, however deep it lies.
 */
export function withoutUnreadable(bytes: Buffer): { rest: Buffer; unreadable: UnreadableHeader[] } | undefined {
  if (bytes.length < FRAME_HEAD_BYTES || bytes[0] !== HEADER_FRAME) return undefined;
  const end = FRAME_HEAD_BYTES + bytes.readUInt32BE(3);
  if (bytes.length <= end) return undefined;
  const payload = bytes.subarray(FRAME_HEAD_BYTES, end);
  const at = headersAt(payload);
  if (at === undefined) return undefined;
  const table = payload.subarray(at + 4, at + 4 + payload.readUInt32BE(at));
  const changed = changedFields(table);
  if (changed.length === 0) return undefined;
  const kept = Buffer.concat(
    [...changed, undefined].flatMap((field, index) => {
      const before = table.subarray(changed[index - 1]?.end ?? 0, field?.at);
      return field?.instead ? [before, table.subarray(field.at, field.valueAt), field.instead] : [before];
    }),
  );
  const length = Buffer.alloc(4);
  length.writeUInt32BE(kept.length);
  const properties = Buffer.concat([payload.subarray(0, at), length, kept, payload.subarray(at + 4 + table.length)]);
  const head = Buffer.from(bytes.subarray(0, FRAME_HEAD_BYTES));
  head.writeUInt32BE(properties.length, 3);
  return {
    rest: Buffer.concat([head, properties, bytes.subarray(end)]),
    unreadable: changed
      .filter(({ instead }) => !instead)
      .map(({ at: nameAt, valueAt, end: fieldEnd }) => ({
        name: table.toString('utf8', nameAt + 1, valueAt),
        // A copy: the frame is a view of a buffer that is much larger.
        field: Buffer.from(table.subarray(valueAt, fieldEnd)),
      })),
  };
}

/** Where the table of headers begins in a content header; undefined without one that could be deep. */
function headersAt(payload: Buffer): number | undefined {
  if (payload.length < CONTENT_HEAD_BYTES + 2) return undefined;
  const flags = payload.readUInt16BE(CONTENT_HEAD_BYTES);
  if ((flags & HAS_HEADERS) === 0) return undefined;
  let at = CONTENT_HEAD_BYTES + 2;
  if (flags & HAS_CONTENT_TYPE) at += 1 + (payload[at] ?? 0);
  if (flags & HAS_CONTENT_ENCODING) at += 1 + (payload[at] ?? 0);
  return at + 4 <= payload.length ? at : undefined;
}

/** A field of a table that cannot stay as it is: where its name, its value and the next field are. */
interface Field {
  at: number;
  valueAt: number;
  end: number;
  /** Another value for it; undefined: it is taken out. */
  instead: Buffer | undefined;
}

/** The fields of a table that cannot be read exactly; all from the first on whose end is not known. */
function changedFields(table: Buffer): Field[] {
  const changed: Field[] = [];
  for (let at = 0; at < table.length;) {
    const valueAt = at + 1 + (table[at] ?? 0);
    const end = valueEnd(table, valueAt, table.length);
    const instead = end === undefined ? undefined : asExactText(table, valueAt);
    const field = { at, valueAt, end: end ?? table.length, instead };
    if (end === undefined || instead || !isReadable(table, valueAt, end)) changed.push(field);
    at = field.end;
  }
  return changed;
}

/** A whole number of 64 bits that JavaScript would round, as the text of its digits (fact 69). */
function asExactText(table: Buffer, valueAt: number): Buffer | undefined {
  if (table[valueAt] !== INT64) return undefined;
  const value = table.readBigInt64BE(valueAt + 1);
  if (Number.isSafeInteger(Number(value))) return undefined;
  const digits = Buffer.from(value.toString());
  const head = Buffer.from('S\0\0\0\0');
  head.writeUInt32BE(digits.length, 1);
  return Buffer.concat([head, digits]);
}

/** Whether the value, which ends there by its own word, holds what it should, and not too deeply. */
function isReadable(table: Buffer, valueAt: number, valueEndsAt: number): boolean {
  if (!'FA'.includes(String.fromCharCode(table[valueAt] ?? 0))) return true;
  // The headers themselves are the first level.
  const mostOpen = MAX_HEADER_DEPTH - 1;
  /** The containers around `at`, the innermost last. */
  const open: { end: number; isTable: boolean }[] = [];
  let at = valueAt;
  for (;;) {
    const tag = String.fromCharCode(table[at] ?? 0);
    const container = open.at(-1);
    const end = valueEnd(table, at, container?.end ?? valueEndsAt);
    if (end === undefined || open.length + (LEVELS[tag] ?? 0) > mostOpen) return false;
    if (tag === 'F' || tag === 'A') {
      open.push({ end, isTable: tag === 'F' });
      at += LENGTH_BYTES;
    } else at = end;
    while (open.at(-1)?.end === at) open.pop();
    const inner = open.at(-1);
    if (!inner) return true;
    if (inner.isTable) at += 1 + (table[at] ?? 0);
  }
}

/** The end of the value at this place; undefined when it is none, or longer than what is around it. */
function valueEnd(table: Buffer, at: number, limit: number): number | undefined {
  const tag = String.fromCharCode(table[at] ?? 0);
  let end = at + 1 + (FIXED_BYTES[tag] ?? NaN);
  if (tag === 'S' || tag === 'x' || tag === 'F' || tag === 'A') {
    if (at + LENGTH_BYTES > limit) return undefined;
    end = at + LENGTH_BYTES + table.readUInt32BE(at + 1);
  }
  return end <= limit ? end : undefined;
}
