import { WaybillError } from '../core/errors.js';
import { LSN_ZERO, type Lsn } from '../core/lsn.js';
import type { Settler } from '../outbox/settler.js';
import type { TableFeed } from '../outbox/table-feed.js';
import type { RelayStore } from '../postgres/relay-store.js';
import type { Slot, SlotState } from '../postgres/slot.js';
import type { TableReader } from '../postgres/table-reader.js';
import type { Condition } from '../runtime/signal.js';
import type { Acquired } from './relay-acquire.js';
import type { SessionOptions } from './relay-session.js';

/** Where the stream starts, and what the table pass before it has published already. */
export interface StartingPoint {
  startLsn: Lsn;
  /** Ids that the stream may bring again until it has passed `fence`. */
  ids: Set<string>;
  fence: Lsn;
}

interface Means {
  store: RelayStore;
  table: TableReader;
  feed: TableFeed;
  /** Resolves when everything that was published is settled, or is in the table and cannot be settled for now. */
  allSettled: () => Promise<void>;
  /** Throws when the session has failed or is to stop. */
  check: () => void;
}

/** At the stored checkpoint, or after a table pass when there is none that the slot and the server can follow. */
export async function findStartingPoint(
  options: SessionOptions,
  acquired: Acquired,
  slot: Slot,
  slotState: SlotState | undefined,
  means: Means,
): Promise<StartingPoint> {
  const { record, identity } = acquired;
  if (slotState && record.checkpointLsn !== null && record.checkpointLsn <= (await slot.insertLsn())) {
    if (record.timeline !== identity.timeline) await means.store.noteTimeline(identity.timeline);
    return { startLsn: record.checkpointLsn, ids: new Set(), fence: LSN_ZERO };
  }
  return tablePass(options, acquired, slot, slotState, means);
}

/**
 * The table pass of the first start and of a lost slot (design 3.4). Noted before its slot is made, when its end is
 * known, and when it is done, so that a crash in between makes it run again (F8, F10):
 *
 *   fence, note where it begins ─▶ make the slot ─▶ fence, note where it ends ─▶ publish ─▶ settled ─▶ note the position
 *
 * What was drawn before the first fence cannot come from the slot. What came between the fences may come twice, and is
 * remembered until the stream has passed the second. What comes later comes from the slot alone.
 *
 * Rows that were published and cannot be removed (locked, refused) do not keep the pass from its end: they are in the
 * table, so no position has to wait for them. The session goes on trying; after a crash the sweep sends them again.
 */
async function tablePass(
  { failure, log, clock, stopping, onPhase }: SessionOptions,
  { record, identity, replication, server }: Acquired,
  slot: Slot,
  slotState: SlotState | undefined,
  { store, table, feed, allSettled, check }: Means,
): Promise<StartingPoint> {
  onPhase('table-pass');
  const ending = AbortSignal.any([failure.signal, stopping]);
  const waiting = (what: string) => (waitingFor: string) =>
    log.warn({ waitingFor }, `${what} waits for transactions that were open before it`);
  let afterSeq = slotState ? (record.passAfterSeq ?? 0n) : undefined;
  if (afterSeq === undefined) {
    afterSeq = (await table.fence(waiting('the table pass'), ending)).uptoSeq;
    check();
    await store.beginPass(afterSeq);
    await slot.create(replication, {
      serverVersion: server.version,
      clock,
      signal: ending,
      log: waiting('making the replication slot'),
    });
    log.info({ slot: slot.name }, 'made the replication slot');
  }
  check();
  const fence = await table.fence(waiting('the table pass'), ending);
  check();
  const uptoSeq = slotState && record.passUptoSeq !== null ? record.passUptoSeq : fence.uptoSeq;
  await store.limitPass(uptoSeq);
  const ids = new Set<string>();
  for (let isComplete = false; !isComplete;) {
    isComplete = await feed.pass(afterSeq, uptoSeq, ids);
    await allSettled();
  }
  const startLsn = (await slot.inspect())?.confirmedFlushLsn;
  if (startLsn == null) {
    throw new WaybillError('WAYBILL_SLOT_LOST', `slot ${slot.name} vanished during the table pass`);
  }
  await store.endPass(startLsn);
  await store.noteTimeline(identity.timeline);
  return { startLsn, ids, fence: fence.lsn };
}

/**
 * Waits until everything published so far is settled, or known to be in the table and out of reach: locked by somebody,
 * or refused. Not so a row that holds others of its key in the table (strict order): these could be overtaken.
 */
export async function settledOrLeft({
  works,
  outstanding,
  settler,
  room,
  check,
  ending,
}: {
  works: { readonly size: number };
  /** Rows without a final word of the broker. */
  outstanding: () => number;
  settler: Settler;
  /** Notified at each word of the broker. */
  room: Condition;
  check: () => void;
  ending: AbortSignal;
}): Promise<void> {
  for (let isLeft = false; !isLeft && works.size > 0;) {
    check();
    // Nobody waits for the interval when there is nothing left to gather.
    isLeft = outstanding() === 0;
    if (isLeft) await settler.flush(ending, 'out of reach');
    else await room.wait();
  }
  check();
}
