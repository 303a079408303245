import type { ByteQueue } from './byte-queue.js';
import type { Sender, WireUnit } from './units.js';

/** Classes and methods of AMQP 0-9-1 with RabbitMQ's extensions. */
const CLASSES: Record<number, [string, Record<number, string>]> = {
  10: [
    'connection',
    {
      ...{ 10: 'start', 11: 'start-ok', 20: 'secure', 21: 'secure-ok', 30: 'tune', 31: 'tune-ok', 40: 'open' },
      ...{ 41: 'open-ok', 50: 'close', 51: 'close-ok', 60: 'blocked', 61: 'unblocked', 70: 'update-secret' },
    },
  ],
  20: ['channel', { 10: 'open', 11: 'open-ok', 20: 'flow', 21: 'flow-ok', 40: 'close', 41: 'close-ok' }],
  40: [
    'exchange',
    {
      ...{ 10: 'declare', 11: 'declare-ok', 20: 'delete', 21: 'delete-ok' },
      ...{ 30: 'bind', 31: 'bind-ok', 40: 'unbind', 51: 'unbind-ok' },
    },
  ],
  50: [
    'queue',
    {
      ...{ 10: 'declare', 11: 'declare-ok', 20: 'bind', 21: 'bind-ok', 30: 'purge', 31: 'purge-ok' },
      ...{ 40: 'delete', 41: 'delete-ok', 50: 'unbind', 51: 'unbind-ok' },
    },
  ],
  60: [
    'basic',
    {
      ...{ 10: 'qos', 11: 'qos-ok', 20: 'consume', 21: 'consume-ok', 30: 'cancel', 31: 'cancel-ok', 40: 'publish' },
      ...{ 50: 'return', 60: 'deliver', 70: 'get', 71: 'get-ok', 72: 'get-empty', 80: 'ack', 90: 'reject' },
      ...{ 100: 'recover-async', 110: 'recover', 111: 'recover-ok', 120: 'nack' },
    },
  ],
  85: ['confirm', { 10: 'select', 11: 'select-ok' }],
  90: ['tx', { 10: 'select', 11: 'select-ok', 20: 'commit', 21: 'commit-ok', 30: 'rollback', 31: 'rollback-ok' }],
};
const HEADER_BYTES = 7;

/**
 * The next AMQP frame: "amqp.server.basic.ack" and so on for methods; "amqp.client.header", ".body", ".heartbeat" for
 * the other frame types; "amqp.client.protocol-header" for the eight bytes before the first frame.
 */
export function amqpUnit(from: Sender, queue: ByteQueue): WireUnit | undefined {
  const head = queue.peek(HEADER_BYTES);
  if (!head) return undefined;
  if (head[0] === 0x41) {
    if (queue.length < 8) return undefined;
    const bytes = queue.take(8);
    return { from, names: [`amqp.${from}.protocol-header`], bytes, body: bytes };
  }
  const size = HEADER_BYTES + head.readUInt32BE(3) + 1;
  if (queue.length < size) return undefined;
  const bytes = queue.take(size);
  const body = bytes.subarray(HEADER_BYTES, -1);
  return { from, names: [`amqp.${from}.${frameName(bytes[0]!, body)}`], bytes, body };
}

function frameName(type: number, body: Buffer): string {
  if (type !== 1) return { 2: 'header', 3: 'body', 8: 'heartbeat' }[type] ?? `frame-${type}`;
  const [classId, methodId] = [body.readUInt16BE(0), body.readUInt16BE(2)];
  const [className, methods] = CLASSES[classId] ?? [`class-${classId}`, {}];
  return `${className}.${methods[methodId] ?? `method-${methodId}`}`;
}

/** The frame with which a broker closes a whole connection. */
export function connectionClose(replyCode: number, replyText: string): Buffer {
  const text = Buffer.from(replyText);
  const body = Buffer.alloc(11 + text.length);
  body.writeUInt16BE(10, 0);
  body.writeUInt16BE(50, 2);
  body.writeUInt16BE(replyCode, 4);
  body.writeUInt8(text.length, 6);
  text.copy(body, 7);
  const head = Buffer.from([1, 0, 0, 0, 0, 0, body.length]);
  return Buffer.concat([head, body, Buffer.from([0xce])]);
}
