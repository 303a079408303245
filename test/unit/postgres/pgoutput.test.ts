import fc from 'fast-check';
import { expect, test } from 'vitest';
import { OUTBOX_COLUMNS, rowFromColumns, STREAM_COLUMNS } from '../../../src/postgres/outbox-row.js';
import { PgoutputDecoder } from '../../../src/postgres/pgoutput.js';
import { begin, commit, insert, relation, type Values } from './pgoutput-encoder.js';

/** Anything PostgreSQL's text can hold. */
const text = fc.string({ unit: 'grapheme' }).map((each) => each.replaceAll('\u0000', ''));
const optional = fc.option(text);
const bytes = fc.uint8Array({ maxLength: 300 }).map((each) => Buffer.from(each));
const values: fc.Arbitrary<Values> = fc.record({
  seq: fc.bigInt({ min: 1n, max: 2n ** 63n - 1n }).map(String),
  id: fc.uuid(),
  type: text,
  key: optional,
  schema_version: fc.nat().map(String),
  payload: fc.option(fc.json()),
  payload_bytes: fc.option(bytes.map((each) => `\\x${each.toString('hex')}`)),
  content_type: optional,
  content_encoding: optional,
  headers: fc.dictionary(text, text).map((each) => JSON.stringify(each)),
  exchange: optional,
  routing_key: optional,
  correlation_id: optional,
  causation_id: optional,
  reply_to: optional,
  traceparent: optional,
  tracestate: optional,
  priority: fc.option(fc.integer({ min: 0, max: 255 }).map(String)),
  expires_at: optional,
  deliver_at: optional,
  occurred_at: text,
  created_at: text,
  attempts: fc.nat().map(String),
  state: text,
});

function decoderFor(columns: readonly string[] = STREAM_COLUMNS): PgoutputDecoder {
  const decoder = new PgoutputDecoder('waybill');
  expect(decoder.decode(relation(7, columns))).toBeUndefined();
  return decoder;
}

/** As a query of the table gives the same row. */
function fromTable(given: Values): ReturnType<typeof rowFromColumns> {
  const value = (slot: number): string | Buffer | null => given[OUTBOX_COLUMNS[slot]!] ?? null;
  return rowFromColumns({
    text: (slot) => value(slot)?.toString() ?? null,
    bytes: (slot) => (value(slot) === null ? null : Buffer.from(value(slot) as string)),
  });
}

test('O7, fact 9: any row comes out of the log as it comes out of the table', () => {
  fc.assert(
    fc.property(values, (given) => {
      const event = decoderFor().decode(insert(7, given));
      expect(event).toEqual({ kind: 'row', row: fromTable(given), state: given.state, holdNo: null });
    }),
    { numRuns: 300 },
  );
});

test('fact 8: the decoded row does not change when the receive buffer is used again', () => {
  fc.assert(
    fc.property(values, (given) => {
      const receiveBuffer = Buffer.concat([Buffer.from('before'), insert(7, given), Buffer.from('after')]);
      const event = decoderFor().decode(receiveBuffer.subarray(6, receiveBuffer.length - 5));
      receiveBuffer.fill(0xff);
      expect(event).toEqual({ kind: 'row', row: fromTable(given), state: given.state, holdNo: null });
    }),
  );
});

test('F48: columns are found by name, whatever their order; a column of the application does no harm', () => {
  const orders = fc.shuffledSubarray([...STREAM_COLUMNS, 'extra'], { minLength: STREAM_COLUMNS.length + 1 });
  fc.assert(
    fc.property(values, orders, optional, (given, order, extra) => {
      expect(decoderFor(order).decode(insert(7, { ...given, extra }, order))).toEqual({
        kind: 'row',
        row: fromTable(given),
        state: given.state,
        holdNo: null,
      });
    }),
  );
});

test('3.5, F48: the place in its key comes with a row, but not from before there were places', () => {
  const columns = [...STREAM_COLUMNS, 'hold_no'];
  const event = decoderFor(columns).decode(insert(7, { state: 'parked', hold_no: '12' }, columns));
  expect(event).toMatchObject({ state: 'parked', holdNo: '12' });
});

test('F48: a missing column stops the stream with its name', () => {
  for (const missing of STREAM_COLUMNS) {
    const decoder = new PgoutputDecoder('waybill');
    const columns = STREAM_COLUMNS.filter((name) => name !== missing);
    expect(() => decoder.decode(relation(7, columns))).toThrow(
      expect.objectContaining({
        code: 'WAYBILL_PUBLICATION_UNFIT',
        message: expect.stringContaining(missing) as string,
      }),
    );
  }
});

test('F48: a new Relation message replaces the old one', () => {
  const decoder = decoderFor();
  const order = [...STREAM_COLUMNS].reverse();
  decoder.decode(relation(7, order));
  expect(decoder.decode(insert(7, { id: 'x', payload: '{"a": 1.10}' }, order))).toMatchObject({
    row: { id: 'x', body: Buffer.from('{"a": 1.10}'), bodyKind: 'json' },
  });
});

test('F45: large bodies and bytes with zeros come whole', () => {
  const json = JSON.stringify({ a: '😀"\\'.repeat(300_000) });
  const binary = Buffer.alloc(1_000_000, Buffer.from([0, 255, 1, 128]));
  const bodyOf = (given: Values): Buffer => {
    const event = decoderFor().decode(insert(7, given));
    return event?.kind === 'row' ? event.row.body : Buffer.alloc(0);
  };
  expect(bodyOf({ payload: json }).equals(Buffer.from(json))).toBe(true);
  expect(bodyOf({ payload_bytes: `\\x${binary.toString('hex')}` }).equals(binary)).toBe(true);
});

test('fact 55: bytea in another form than hex is an error, not a wrong body', () => {
  expect(() => decoderFor().decode(insert(7, { payload_bytes: 'ab\\000c' }))).toThrow('hex');
});

test('a begin says when its transaction was committed, in milliseconds since 1970', () => {
  fc.assert(
    fc.property(fc.date({ min: new Date(0), max: new Date('2200-12-31'), noInvalidDate: true }), (at) => {
      const micros = (BigInt(at.getTime()) - 946_684_800_000n) * 1000n + 250n;
      const bits = BigInt.asUintN(64, micros);
      expect(new PgoutputDecoder('waybill').decode(begin(1n, 2, bits))).toEqual({
        kind: 'begin',
        commitLsn: 1n,
        committedAtMs: expect.closeTo(at.getTime() + 0.25, 2) as number,
        xid: 2,
      });
    }),
  );
});

test('facts 10, 11: begin and commit carry 64-bit positions; the commit gives its end', () => {
  fc.assert(
    fc.property(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), fc.nat({ max: 0xffffffff }), (lsn, xid) => {
      expect(new PgoutputDecoder('waybill').decode(begin(lsn, xid))).toMatchObject({ commitLsn: lsn, xid });
      expect(new PgoutputDecoder('waybill').decode(commit(lsn ^ 0xffn, lsn))).toEqual({ kind: 'commit', endLsn: lsn });
    }),
    { examples: [[2n ** 64n - 1n, 0xffffffff]] },
  );
});

test('F51: updates, deletes, truncates and other tables mean nothing here and are counted', () => {
  const decoder = decoderFor();
  for (const type of 'UDT') expect(decoder.decode(Buffer.from(`${type}....`))).toBeUndefined();
  decoder.decode(relation(8, ['seq'], 'waybill', 'other'));
  decoder.decode(relation(9, STREAM_COLUMNS, 'elsewhere', 'outbox'));
  expect(decoder.decode(insert(8, {}, ['seq']))).toBeUndefined();
  expect(decoder.decode(insert(9, {}))).toBeUndefined();
  for (const type of 'OYM') expect(decoder.decode(Buffer.from(`${type}....`))).toBeUndefined();
  expect(decoder.ignored).toBe(5);
});

test('what is not understood stops the stream', () => {
  const unknown = expect.objectContaining({ code: 'WAYBILL_STREAM_PROTOCOL' }) as Error;
  expect(() => decoderFor().decode(Buffer.from('S....'))).toThrow(unknown);
  expect(() => decoderFor().decode(Buffer.alloc(0))).toThrow(unknown);
  expect(() => decoderFor().decode(insert(8, {}))).toThrow(unknown);
  const toasted = insert(7, { type: 'x' });
  toasted[toasted.indexOf('t'.charCodeAt(0))] = 'u'.charCodeAt(0);
  expect(() => decoderFor().decode(toasted)).toThrow(unknown);
});

test('a cut message is an error, never a row', () => {
  fc.assert(
    fc.property(values, fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), (given, share) => {
      const whole = insert(7, given);
      const cut = whole.subarray(0, Math.floor(whole.length * share));
      expect(() => decoderFor().decode(Buffer.from(cut))).toThrow();
    }),
  );
});
