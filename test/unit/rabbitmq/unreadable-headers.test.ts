import { createRequire } from 'node:module';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { toInboundRow } from '../../../src/core/delivery.js';
import { withoutUnreadable } from '../../../src/rabbitmq/unreadable-headers.js';
import { contentHeader, int64Header, nestedHeader, textHeader } from '../../support/wire/content-headers.js';

/** The client's own codec, by its file: the package does not export it. */
const load = createRequire(import.meta.url);
const codec = load('../../../node_modules/amqplib/lib/codec.js') as {
  encodeTable(buffer: Buffer, value: object, offset: number): number;
};
const frames = load('../../../node_modules/amqplib/lib/frame.js') as {
  parseFrame(bytes: Buffer, max: number): { rest: Buffer } | false;
  decodeFrame(frame: object): { fields: { headers: Record<string, unknown>; messageId: string; type: string } };
};

const message = (fields: readonly Buffer[]): Buffer =>
  contentHeader(3, { fields, messageId: 'm-1', type: 'order.paid', bodyBytes: 7 });

/** The properties as the client reads them once the rest was set aside, and what follows the frame. */
function read(bytes: Buffer) {
  const found = withoutUnreadable(bytes);
  const parsed = frames.parseFrame(found?.rest ?? bytes, 0);
  if (!parsed) throw new Error('the frame is not there in full');
  return { unreadable: found?.unreadable ?? [], properties: frames.decodeFrame(parsed).fields, rest: parsed.rest };
}

function encoded(headers: object): Buffer {
  const buffer = Buffer.alloc(64 * 1024);
  return buffer.subarray(4, codec.encodeTable(buffer, headers, 0));
}

const scalar = fc.oneof(
  fc.string(),
  fc.integer(),
  fc.double({ noNaN: true, min: -1e15, max: 1e15 }),
  fc.boolean(),
  fc.constant(null),
  fc.uint8Array().map((bytes) => Buffer.from(bytes)),
  fc.constant({ '!': 'timestamp', value: 1_700_000_000 }),
  fc.constant({ '!': 'decimal', value: { places: 2, digits: 110 } }),
);
/** Which of the levels around a value are arrays. */
const levels = (minLength: number, maxLength: number) => fc.array(fc.boolean(), { minLength, maxLength, size: 'max' });
/** A value within levels, some too many. */
const wrapped = fc
  .tuple(scalar, fc.oneof(levels(0, 4), levels(11, 18)))
  .map(([inner, kinds]) =>
    kinds.reduce<unknown>((value, isArray) => (isArray ? [1, value, 'x'] : { a: 1, b: value }), inner),
  );
const name = fc.string({ minLength: 1, maxLength: 20 }).filter((text) => text !== '__proto__' && text !== '!');

describe('headers that the client cannot decode', () => {
  it.each(['A', 'F'] as const)('are set aside however deep, with everything else of the message kept (%s)', (kind) => {
    const levels = 20_000;
    const deep = nestedHeader('x-deep', levels, kind);
    const bytes = Buffer.concat([
      message([textHeader('a', 'before'), deep, textHeader('b', 'behind')]),
      Buffer.from('next'),
    ]);
    const parsed = frames.parseFrame(bytes, 0);
    expect(() => frames.decodeFrame(parsed as object)).toThrow(RangeError);
    const { unreadable, properties, rest } = read(bytes);
    expect(properties).toMatchObject({ messageId: 'm-1', type: 'order.paid', headers: { a: 'before', b: 'behind' } });
    expect(unreadable.map((each) => each.name)).toEqual(['x-deep']);
    expect(unreadable[0]?.field.equals(deep.subarray(7))).toBe(true);
    expect(rest.toString()).toBe('next');
  });

  it('are those, and only those, that would be too deep for a row', () => {
    const rules = {
      identification: { kind: 'message-id' as const },
      idNamespace: 'none' as const,
      accept: [],
      maxBodyBytes: 9,
    };
    const isDeepForARow = (headers: Record<string, unknown>): boolean =>
      toInboundRow(
        {
          deliveryTag: 1,
          redelivered: false,
          exchange: '',
          routingKey: '',
          properties: { messageId: 'm', headers },
          body: Buffer.alloc(0),
        },
        rules,
      ).dead?.text === 'its headers are nested too deeply';
    fc.assert(
      fc.property(fc.dictionary(name, wrapped, { maxKeys: 4 }), (headers) => {
        const bytes = message([encoded(headers)]);
        const all = frames.decodeFrame(frames.parseFrame(bytes, 0) as object).fields.headers;
        const { unreadable, properties } = read(bytes);
        const deep = Object.keys(all).filter((each) => isDeepForARow({ [each]: all[each] }));
        expect(unreadable.map((each) => each.name).sort()).toEqual(deep.sort());
        expect(properties.headers).toEqual(
          Object.fromEntries(Object.entries(all).filter(([each]) => !deep.includes(each))),
        );
      }),
      { numRuns: 500 },
    );
  });

  it('fact 69: a whole number that the client would round comes as text, the others as they are', () => {
    const numbers = [2n ** 63n - 1n, -(2n ** 63n), 2n ** 53n, 2n ** 53n - 1n, 7n];
    const bytes = Buffer.concat([
      message([
        textHeader('a', 'before'),
        ...numbers.map((n, index) => int64Header(`n${index}`, n)),
        textHeader('b', 'c'),
      ]),
      Buffer.from('next'),
    ]);
    const { unreadable, properties, rest } = read(bytes);
    expect(properties).toMatchObject({ messageId: 'm-1', type: 'order.paid' });
    expect(properties.headers).toEqual({
      a: 'before',
      n0: '9223372036854775807',
      n1: '-9223372036854775808',
      n2: '9007199254740992',
      n3: 9_007_199_254_740_991,
      n4: 7,
      b: 'c',
    });
    expect(unreadable).toEqual([]);
    expect(rest.toString()).toBe('next');
  });

  it('are all that make the decoder fail, whatever the bytes of the table', () => {
    const broken = fc
      .tuple(
        fc.dictionary(name, wrapped, { maxKeys: 3 }),
        fc.array(fc.tuple(fc.nat(400), fc.nat(255)), { maxLength: 4 }),
      )
      .map(([headers, changes]) => {
        const table = encoded(headers);
        for (const [at, byte] of changes) if (at < table.length) table[at] = byte;
        return table;
      });
    fc.assert(
      fc.property(
        fc.oneof(
          broken,
          fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
        ),
        (table) => {
          const { unreadable, properties } = read(message([table]));
          expect(properties.messageId).toBe('m-1');
          const lost = unreadable.reduce((sum, { field }) => sum + field.length, 0);
          expect(lost).toBeLessThanOrEqual(table.length);
        },
      ),
      { numRuns: 2_000 },
    );
  });

  it('are looked for in whole content headers alone', () => {
    const bytes = message([nestedHeader('x-deep', 100)]);
    for (let end = 0; end < bytes.length; end += 1) expect(withoutUnreadable(bytes.subarray(0, end))).toBeUndefined();
    const body = Buffer.from(bytes);
    body[0] = 3;
    expect(withoutUnreadable(body)).toBeUndefined();
  });
});
