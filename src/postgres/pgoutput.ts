import { WaybillError } from '../core/errors.js';
import type { Lsn } from '../core/lsn.js';
import type { OutboxRow } from '../core/message.js';
import { rowFromColumns, STREAM_COLUMNS, type Columns } from './outbox-row.js';

/** What the stream brings, in the order of arrival. Source: the manual, "Logical Replication Message Formats". */
export type WalEvent =
  | { kind: 'begin'; commitLsn: Lsn; committedAtMs: number; xid: number }
  | { kind: 'row'; row: OutboxRow; state: string; holdNo: string | null }
  | { kind: 'commit'; endLsn: Lsn }
  | { kind: 'keepalive'; walEnd: Lsn; replyRequested: boolean };

/** What is looked for in the stream. Why not all required: what was written before version 7 of the schema has no hold_no. */
const COLUMNS: readonly string[] = [...STREAM_COLUMNS, 'hold_no'];
const STATE = COLUMNS.indexOf('state');
const HOLD_NO = COLUMNS.indexOf('hold_no');

interface Relation {
  /** For each column of the stream its number among COLUMNS, or -1; undefined when this is not the outbox. */
  slots: number[] | undefined;
}

const NULL_VALUE = 'n'.charCodeAt(0);
const TEXT_VALUE = 't'.charCodeAt(0);
/** 2000-01-01 in milliseconds since 1970. */
const POSTGRES_EPOCH_MS = 946_684_800_000;

/**
 * Decodes pgoutput protocol version 1. Copies everything it keeps: the buffers it is given are views of a receive buffer
 * that is used again. Values stay text; the payload's bytes are taken as they are. One decoder lives as long as one
 * connection, because Relation messages are sent once a connection.
 */
export class PgoutputDecoder {
  readonly #relations = new Map<number, Relation>();
  readonly #schema: string;
  readonly #tuple = new Tuple();
  /** Updates, deletes and truncates seen; a publication wider than `insert` sends them, and they mean nothing here. */
  ignored = 0;

  constructor(schema: string) {
    this.#schema = schema;
  }

  /** One pgoutput message; undefined for those that carry nothing for the relay. */
  decode(message: Buffer): WalEvent | undefined {
    switch (String.fromCharCode(message[0] ?? 0)) {
      case 'B':
        return {
          kind: 'begin',
          commitLsn: message.readBigUInt64BE(1),
          committedAtMs: milliseconds(message, 9),
          xid: message.readUInt32BE(17),
        };
      case 'C':
        return { kind: 'commit', endLsn: message.readBigUInt64BE(10) };
      case 'I':
        return this.#insert(message);
      case 'R':
        this.#relation(message);
        return undefined;
      case 'U':
      case 'D':
      case 'T':
        this.ignored += 1;
        return undefined;
      case 'O':
      case 'Y':
      case 'M':
        return undefined;
      default:
        throw new WaybillError('WAYBILL_STREAM_PROTOCOL', `unknown pgoutput message type ${String(message[0])}`, {
          hint: 'This PostgreSQL speaks a newer protocol than was asked for; please report it with the server version.',
        });
    }
  }

  #relation(message: Buffer): void {
    const reader = new Reader(message, 1);
    const id = reader.int32();
    const schema = reader.string();
    const table = reader.string();
    reader.skip(1);
    const count = reader.int16();
    const names: string[] = [];
    for (let n = 0; n < count; n += 1) {
      reader.skip(1);
      names.push(reader.string());
      reader.skip(8);
    }
    if (schema !== this.#schema || table !== 'outbox') {
      this.#relations.set(id, { slots: undefined });
      return;
    }
    const missing = STREAM_COLUMNS.filter((name) => !names.includes(name));
    if (missing.length > 0) {
      throw new WaybillError(
        'WAYBILL_PUBLICATION_UNFIT',
        `the stream sends no column ${missing.join(', ')} of outbox`,
        {
          hint: 'A column was dropped or renamed, or the publication has a column list. Mend it with: waybill doctor',
        },
      );
    }
    this.#relations.set(id, { slots: names.map((name) => COLUMNS.indexOf(name)) });
  }

  #insert(message: Buffer): WalEvent | undefined {
    const reader = new Reader(message, 1);
    const relation = this.#relations.get(reader.int32());
    if (!relation) throw new WaybillError('WAYBILL_STREAM_PROTOCOL', 'an insert came before its Relation message');
    const { slots } = relation;
    if (!slots) {
      this.ignored += 1;
      return undefined;
    }
    reader.skip(1);
    const count = reader.int16();
    this.#tuple.begin(message);
    for (let n = 0; n < count; n += 1) {
      const kind = reader.byte();
      if (kind === NULL_VALUE) continue;
      if (kind !== TEXT_VALUE) {
        throw new WaybillError('WAYBILL_STREAM_PROTOCOL', `column ${n} of an insert came as kind ${kind}, not text`);
      }
      const length = reader.int32();
      const slot = slots[n] ?? -1;
      if (slot >= 0) this.#tuple.set(slot, reader.offset, length);
      reader.skip(length);
    }
    return {
      kind: 'row',
      row: rowFromColumns(this.#tuple),
      state: this.#tuple.text(STATE) ?? '',
      holdNo: this.#tuple.text(HOLD_NO),
    };
  }
}

/** A timestamp of the protocol, microseconds since 2000, as milliseconds since 1970 by the server's clock. */
function milliseconds(message: Buffer, offset: number): number {
  return POSTGRES_EPOCH_MS + (message.readInt32BE(offset) * 2 ** 32 + message.readUInt32BE(offset + 4)) / 1000;
}

/** Where the known columns of one tuple are; used again for each, so that a row costs no garbage but its own values. */
class Tuple implements Columns {
  #message: Buffer = Buffer.alloc(0);
  readonly #starts = new Int32Array(COLUMNS.length);
  readonly #ends = new Int32Array(COLUMNS.length);

  begin(message: Buffer): void {
    this.#message = message;
    this.#starts.fill(-1);
  }

  set(slot: number, start: number, length: number): void {
    this.#starts[slot] = start;
    this.#ends[slot] = start + length;
  }

  text(slot: number): string | null {
    const start = this.#starts[slot] ?? -1;
    return start < 0 ? null : this.#message.toString('utf8', start, this.#ends[slot]);
  }

  bytes(slot: number): Buffer | null {
    const start = this.#starts[slot] ?? -1;
    return start < 0 ? null : Buffer.from(this.#message.subarray(start, this.#ends[slot]));
  }
}

/** Reads big-endian fields one after the other. */
class Reader {
  constructor(
    readonly buffer: Buffer,
    public offset: number,
  ) {}

  byte(): number {
    return this.buffer.readUInt8(this.#advance(1));
  }

  int16(): number {
    return this.buffer.readInt16BE(this.#advance(2));
  }

  int32(): number {
    return this.buffer.readInt32BE(this.#advance(4));
  }

  string(): string {
    const end = this.buffer.indexOf(0, this.offset);
    const start = this.#advance(end + 1 - this.offset);
    return this.buffer.toString('utf8', start, end);
  }

  skip(length: number): void {
    this.#advance(length);
  }

  #advance(length: number): number {
    const at = this.offset;
    this.offset += length;
    // Why: a slice past the end is silently shorter, and would make another message of the row.
    if (length < 0 || this.offset > this.buffer.length) {
      throw new WaybillError('WAYBILL_STREAM_PROTOCOL', 'a pgoutput message is shorter than it says');
    }
    return at;
  }
}
