/** Frames of a publish that no client would write: encoded by hand, because clients' encoders call themselves for each level. */

const FRAME_END = 0xce;

function shortString(text: string): Buffer {
  const bytes = Buffer.from(text);
  return Buffer.concat([Buffer.from([bytes.length]), bytes]);
}

function sized(bytes: Buffer): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length);
  return Buffer.concat([length, bytes]);
}

function frame(type: number, channel: number, payload: Buffer): Buffer {
  const head = Buffer.from([type, channel >> 8, channel & 0xff]);
  return Buffer.concat([head, sized(payload), Buffer.from([FRAME_END])]);
}

/** A header whose value is so many arrays (or tables with one field) within each other, the innermost empty. */
export function nestedHeader(name: string, levels: number, kind: 'A' | 'F' = 'A'): Buffer {
  const perLevel = kind === 'A' ? 5 : 6;
  const value = Buffer.alloc(levels * perLevel - (kind === 'A' ? 0 : 1));
  for (let level = 0; level < levels; level += 1) {
    const at = level * perLevel;
    value.write(kind, at);
    value.writeUInt32BE(value.length - at - 5, at + 1);
    // A name without a character follows in a table; its length is the 0 that is there.
  }
  return Buffer.concat([shortString(name), value]);
}

export function textHeader(name: string, value: string): Buffer {
  return Buffer.concat([shortString(name), Buffer.from('S'), sized(Buffer.from(value))]);
}

/** A signed whole number of 64 bits. */
export function int64Header(name: string, value: bigint): Buffer {
  const field = Buffer.alloc(9, 'l');
  field.writeBigInt64BE(value, 1);
  return Buffer.concat([shortString(name), field]);
}

/** A content header frame with headers, a message id and a type. */
export function contentHeader(
  channel: number,
  message: { fields: readonly Buffer[]; messageId: string; type: string; bodyBytes: number },
): Buffer {
  const head = Buffer.alloc(14);
  head.writeUInt16BE(60, 0);
  head.writeBigUInt64BE(BigInt(message.bodyBytes), 4);
  // Content type, headers, delivery mode, message id, type.
  head.writeUInt16BE(0x8000 | 0x2000 | 0x1000 | 0x0080 | 0x0020, 12);
  const properties = [
    shortString('application/json'),
    sized(Buffer.concat(message.fields)),
    Buffer.from([2]),
    shortString(message.messageId),
    shortString(message.type),
  ];
  return frame(2, channel, Buffer.concat([head, ...properties]));
}

/** A message published on a channel to a queue by the default exchange. */
export function publishFrames(
  channel: number,
  queue: string,
  message: { fields: readonly Buffer[]; messageId: string; body: string },
): Buffer {
  const body = Buffer.from(message.body);
  const publish = Buffer.concat([Buffer.from([0, 60, 0, 40, 0, 0, 0]), shortString(queue), Buffer.from([0])]);
  return Buffer.concat([
    frame(1, channel, publish),
    contentHeader(channel, { ...message, type: 'order.paid', bodyBytes: body.length }),
    frame(3, channel, body),
  ]);
}
