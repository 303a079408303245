import { STREAM_COLUMNS, type OutboxColumn } from '../../../src/postgres/outbox-row.js';

/** Encodes what a walsender sends with proto_version 1. Source: the manual, "Logical Replication Message Formats". */
const int16 = (value: number): Buffer => {
  const buffer = Buffer.alloc(2);
  buffer.writeInt16BE(value);
  return buffer;
};
const int32 = (value: number): Buffer => {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32BE(value);
  return buffer;
};
const int64 = (value: bigint): Buffer => {
  const buffer = Buffer.alloc(8);
  buffer.writeBigUInt64BE(value);
  return buffer;
};
const string = (value: string): Buffer => Buffer.from(`${value}\0`);

export const begin = (commitLsn: bigint, xid: number, committedAtMicros = 0n): Buffer =>
  Buffer.concat([Buffer.from('B'), int64(commitLsn), int64(committedAtMicros), int32(xid)]);

export const commit = (commitLsn: bigint, endLsn: bigint): Buffer =>
  Buffer.concat([Buffer.from('C'), Buffer.alloc(1), int64(commitLsn), int64(endLsn), int64(0n)]);

export function relation(
  id: number,
  columns: readonly string[] = STREAM_COLUMNS,
  schema = 'waybill',
  table = 'outbox',
): Buffer {
  const each = columns.map((name) => Buffer.concat([Buffer.alloc(1), string(name), int32(25), int32(0xffffffff)]));
  return Buffer.concat([
    Buffer.from('R'),
    int32(id),
    string(schema),
    string(table),
    Buffer.from('d'),
    int16(columns.length),
    ...each,
  ]);
}

export type Values = Partial<Record<OutboxColumn | 'state' | 'hold_no' | 'extra', string | Buffer | null | undefined>>;

export function insert(id: number, values: Values, columns: readonly string[] = STREAM_COLUMNS): Buffer {
  const each = columns.map((name) => {
    const value = values[name as OutboxColumn] ?? null;
    if (value === null) return Buffer.from('n');
    const bytes = Buffer.from(value as string);
    return Buffer.concat([Buffer.from('t'), int32(bytes.length), bytes]);
  });
  return Buffer.concat([Buffer.from('I'), int32(id), Buffer.from('N'), int16(columns.length), ...each]);
}
