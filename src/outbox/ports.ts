import type { Fault } from '../core/fault.js';
import type { LaneQuestion } from '../core/key-lanes.js';
import type { Lsn } from '../core/lsn.js';
import type { Message, OutboxRow } from '../core/message.js';
import type { Return } from '../core/confirms.js';
import type { Refusal } from './refusal.js';

/** What the relay pipeline needs from the rooms below; the adapters satisfy these by their shape. */

/** A row whose message the broker has confirmed (or whose loss was accepted), to be deleted. */
export interface Settlement {
  row: OutboxRow;
  exchange: string;
  routingKey: string;
  outcome: 'published' | 'accepted' | 'expired' | 'cancelled' | 'discarded';
  /** What may be reported while this row stays; null for a row that came from the table. */
  floorLsn: Lsn | null;
}

/** A row that cannot go out now, to be kept in the table with its reason. */
export interface Hold {
  row: OutboxRow;
  state: 'scheduled' | 'parked' | 'blocked';
  attempts: number;
  error: string | null;
  /** For `scheduled`: due so long from now, milliseconds; null = at deliver_at. */
  delayMs: number | null;
  /** For a row from the log: its transaction, to tell "not visible yet" from "gone". */
  xid: number | null;
  /** With `ordering: strict`, its place in its key, which it keeps; null = none, or the next number. */
  holdNo: bigint | null;
  /** Rows of one lane are held up to the first that is not found, and those behind it count as not found; null = alone. */
  lane: string | null;
}

/** A held row that has come again from the log, and its place among those that come with it (`ordering: strict`). */
export interface Placing {
  row: { seq: string; id: string };
  holdNo: bigint;
}

/** Rows that a statement has left as they are, by seq. */
export interface NotStored {
  /** It did not find them, or could not lock them. */
  missing: ReadonlySet<string>;
  /** It has found and locked them, and they are as they were: a trigger has returned NULL. */
  kept: ReadonlyMap<string, Refusal>;
}

export interface SettleResult extends NotStored {
  checkpointLsn: Lsn | null;
}

/** What a second look found about rows that a settle or a hold did not find. */
export type Whereabouts = 'present' | 'undecided' | 'gone';

/** What the table has under an id. */
export interface RowState {
  /** The seq that it has now: a row that was written back has another one. */
  seq: string;
  state: string;
  /** It has a place among the rows of its key. */
  isPlaced: boolean;
  /** It is `ready` because its time had come. */
  isDue: boolean;
}

/** A transaction that has locked rows: of a session, or a prepared one. Names are null where they cannot be seen. */
export interface LockHolder {
  pid: number | null;
  user: string | null;
  application: string | null;
  /** The name of a prepared transaction. */
  prepared: string | null;
}

export interface TableFence {
  /** Every transaction that drew a seq up to this one has ended and is visible. */
  uptoSeq: bigint;
  /** Everything those transactions wrote is before this position, and it is flushed. */
  lsn: Lsn;
}

export interface SeqAndSize {
  seq: string;
  /** Octets of the body. */
  bytes: number;
}

export interface ReadyRow extends SeqAndSize {
  key: string | null;
}

/** A whole row, and its place in its key if it holds one (`ordering: strict`). */
export interface PlacedRow {
  row: OutboxRow;
  holdNo: string | null;
  /** It is `ready` because its time had come. */
  isDue: boolean;
}

/** What is said of a row that waits in the table. */
export interface WaitingRow {
  seq: string;
  id: string;
  key: string | null;
  type: string;
}

/** A row that is as it was, although nothing was said against the statement. */
export interface Kept {
  row: WaitingRow;
  refusal: Refusal;
}

/** Rows whose time has come. */
export interface Due {
  /** They are `ready` now, durably. */
  rows: SeqAndSize[];
  /** With `ordering: strict`, those that have a place in their key: they wait for their turn now, as `blocked`. */
  placed: { key: string; order: bigint }[];
  kept: Kept[];
}

/** Which rows a statement takes: the first ones without some, or only these. */
export type WhichRows = { limit: number; without: readonly string[] } | { only: readonly string[] };

/** What the table answers about one key (`ordering: strict`). */
export interface Released {
  /** From the head of the key, in order; all are `ready` now, durably. */
  rows: SeqAndSize[];
  /** Whether rows of the key stay held behind these. */
  remains: boolean;
  /** Somebody has locked the row behind these, or it is left out: without that, it would have gone. */
  isLocked: boolean;
  /** The row behind these, if it is as it was; those behind it are left where they are. */
  kept: Kept | null;
}

/** The relay's writes, each fenced by its epoch: WAYBILL_EPOCH_LOST when that is another's. */
export interface Store {
  /** Deletes and moves the checkpoint in one statement. `durable` waits for the disk. */
  settle(rows: readonly Settlement[], candidateLsn: Lsn | null, durable: boolean): Promise<SettleResult>;
  /** Keeps rows with their reason, committed to disk. */
  hold(holds: readonly Hold[]): Promise<NotStored>;
  /** Gives rows that the table holds new places, committed to disk; gives the seqs that it did not find. */
  place(rows: readonly Placing[]): Promise<Set<string>>;
  /**
   * Writes back a held row whose table row is gone. False: its id is in the table already. A refusal: it is not there,
   * although nothing was said against it.
   */
  writeBack(hold: Hold): Promise<boolean | Refusal>;
  whereabouts(rows: readonly { seq: string; id: string; xid: number | null }[]): Promise<Map<string, Whereabouts>>;
  /** Who has locked these rows, as far as it can be seen; never fails for want of a right. */
  lockHolders(rows: readonly { seq: string }[]): Promise<LockHolder[]>;
  recordGone(rows: readonly Settlement[]): Promise<void>;
  noteInsertThenDelete(): Promise<void>;
  /** By the seq asked for, the rows that are there under the same id, whatever seq they have now. */
  states(rows: readonly { seq: string; id: string }[]): Promise<Map<string, RowState>>;
  /**
   * The seqs of those that the history has under the same seq and id: an earlier session has settled them. Undefined when
   * there is no history, or it may not be looked at.
   */
  settledBefore(rows: readonly { seq: string; id: string }[]): Promise<Set<string> | undefined>;
  beginPass(afterSeq: bigint): Promise<void>;
  limitPass(uptoSeq: bigint): Promise<void>;
  endPass(checkpointLsn: Lsn): Promise<void>;
}

/** Reads the outbox itself. */
export interface Table {
  highestSeq(): Promise<bigint>;
  /** `drawn`: the last one that the sequence gave. `highest`: also covers one given explicitly. */
  seqs(): Promise<{ drawn: bigint; highest: bigint }>;
  /** The transactions that may have drawn a seq and not ended yet. */
  writers(): Promise<ReadonlySet<string>>;
  fence(log: (waitingFor: string) => void, signal: AbortSignal): Promise<TableFence>;
  /** A position past everything that is visible now, flushed. */
  position(): Promise<Lsn>;
  readyRows(afterSeq: bigint, uptoSeq: bigint, limit: number): Promise<ReadyRow[]>;
  /** Rows in state `ready`, in seq order, each with its place in its key if it has one. */
  readRows(seqs: readonly string[]): Promise<PlacedRow[]>;
  /** Rows that were cancelled or discarded, without their bodies, after `afterSeq` in seq order. */
  withdrawnRows(afterSeq: bigint, limit: number): Promise<{ row: OutboxRow; state: 'cancelled' | 'discarded' }[]>;
}

/** Changes rows that wait in the outbox, each time in a committed transaction; refused as a whole, or done. */
export interface WaitingTable {
  /** Lets rows go whose time has come, oldest first. */
  makeDue(which: WhichRows): Promise<Due>;
  /** The rows that are due, oldest first, without these. */
  dueRows(limit: number, without: readonly string[]): Promise<WaitingRow[]>;
  /**
   * Lets held rows of these keys go, from the head of each key as far as nothing waits for a time or a person: they are
   * `ready`, durably. A key that somebody has locked is not in the answer. Only rows with a number up to `upto`; null: all.
   * The rows `without` stay, and those behind them.
   */
  release(
    keys: readonly LaneQuestion[],
    upto: bigint | null,
    rowsPerKey: number,
    without: readonly string[],
  ): Promise<Map<string, Released>>;
  /** The row that a release of this key would let go first. */
  headOf(key: LaneQuestion, upto: bigint | null): Promise<WaitingRow | undefined>;
  /** Puts rows that an earlier session had released back behind others of their key: all (default), or only these. */
  reblock(only?: readonly string[]): Promise<void>;
  /** The highest number that a held row has. */
  lastHoldNo(): Promise<bigint>;
  /** Lets rows go that strict order has held, when it is not in force any more. Gives how many, and those that stay. */
  unblock(which: WhichRows): Promise<{ rows: number; kept: Kept[] }>;
  /** Rows in these states that have a place, in the order of their places, without some. */
  placedRows(states: readonly string[], limit: number | null, without: readonly string[]): Promise<WaitingRow[]>;
}

/** A channel in confirm mode. After `onClosed` nothing else is called. */
export interface PublishChannel {
  /** Hands a message to the socket; throws when the client refuses it, and then nothing was sent. */
  publish(message: Message): void;
  readonly isOpen: boolean;
  close(): Promise<void>;
}

export interface PublishChannelEvents {
  onAck(deliveryTag: number, multiple: boolean): void;
  onNack(deliveryTag: number, multiple: boolean): void;
  onReturn(messageId: string, reason: Return): void;
  onClosed(error: Error): void;
}

/** The publishing connection, whose owner holds the lock queue (O8). */
export interface PublishConnection {
  openChannel(events: PublishChannelEvents): Promise<PublishChannel>;
  /** Looks on a throwaway channel; undefined means that it is there. Throws when the connection dies. */
  checkExchange(name: string): Promise<Fault | undefined>;
  /** Whether the broker has blocked the connection (memory or disk alarm). */
  readonly isBlocked: boolean;
}

/** The replication stream, as far as the pump steers it. */
export interface Stream {
  pause(): void;
  resume(): void;
  report(received: Lsn, settled: Lsn, ping?: boolean): void;
}

/** What is counted; the metrics are made from it. */
export interface RelayCounters {
  published: number;
  confirmed: number;
  returned: number;
  nacked: number;
  resent: number;
  accepted: number;
  expired: number;
  parked: number;
  scheduled: number;
  blocked: number;
  settled: number;
  gone: number;
  rebuilt: number;
  swept: number;
  duplicatesSkipped: number;
}

/** A line of the log; the fields carry ids, never bodies. */
export interface RelayLog {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}
