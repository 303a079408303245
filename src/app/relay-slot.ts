import { WaybillError } from '../core/errors.js';
import { formatLsn, type Lsn } from '../core/lsn.js';
import { inspectPublication } from '../postgres/relay-record.js';
import type { Slot, SlotState } from '../postgres/slot.js';
import { pause } from '../runtime/clock.js';
import type { SessionContext } from './relay-acquire.js';
import type { SqlClient } from './session.js';

const SLOT_POLL_MS = 500;
const MIN_SLOT_WAIT_MS = 60_000;

/** True whether or not applications delete rows themselves. */
const FROM_THE_TABLE =
  'no row in it is lost, but those that applications deleted themselves before they were published';

/** Throws when the publication would hide rows or columns from the relay (F33-F35). */
export async function assertPublication(client: SqlClient, schema: string, publication: string): Promise<void> {
  const found = await inspectPublication(client, schema, publication);
  const unfit = (what: string): never => {
    throw new WaybillError('WAYBILL_PUBLICATION_UNFIT', `publication ${publication} ${what}`, {
      hint: `drop publication ${publication}; the relay makes it anew and reads the table: ${FROM_THE_TABLE}.`,
    });
  };
  if (!found) throw new WaybillError('WAYBILL_PUBLICATION_MISSING', `there is no publication ${publication}`);
  if (!found.hasOutbox) unfit(`does not contain ${schema}.outbox`);
  if (!found.sendsInserts) unfit('does not send inserts');
  if (found.rowFilter !== null) unfit('has a row filter, which would hide rows');
  if (found.missingColumns.length > 0) {
    throw new WaybillError(
      'WAYBILL_PUBLICATION_UNFIT',
      `publication ${publication} sends no column ${found.missingColumns.join(', ')} of ${schema}.outbox`,
      {
        hint: `Give the table its columns back as the migrations made them, and the publication no column list (drop publication ${publication}). The relay then reads the table: ${FROM_THE_TABLE}.`,
      },
    );
  }
}

/** What a slot is judged by. */
export interface SlotFacts {
  database: string;
  walSenderTimeoutMs: number;
  /** Of the session before, and now: another one means a promotion. Null before the first session. */
  fromTimeline: number | null;
  timeline: number;
  /** The relay has worked with its slot, and did not give it up itself. */
  expected: boolean;
  publicationMade: boolean;
  /** Applications delete rows themselves: between the old slot and a new one such rows are in the log alone. */
  insertThenDeleteSeen: boolean;
  /** Why it must go, whatever its state. */
  replace: string | undefined;
}

/**
 * The slot if it can be used, or undefined when one must be made and the table be read. What is lost, ahead of the
 * server, of another timeline or older than its publication is dropped; what another process uses is waited for, a
 * while; what belongs to another database is never touched.
 */
export async function usableSlot(
  { clock, failure, log, onPhase }: SessionContext,
  slot: Slot,
  facts: SlotFacts,
): Promise<SlotState | undefined> {
  const promoted = wasPromoted(facts);
  const timelines = { fromTimeline: facts.fromTimeline, timeline: facts.timeline };
  const giveUpAtMs = clock.now() + Math.max(MIN_SLOT_WAIT_MS, facts.walSenderTimeoutMs) * (1 + clock.random() / 4);
  for (let waiting = false; ; waiting = true) {
    const state = await slot.inspect();
    if (!state) {
      if (facts.expected && facts.replace === undefined) {
        const why = promoted
          ? 'the server was promoted, and the replication slot is not there'
          : 'the replication slot is gone';
        log.error({ slot: slot.name, ...(promoted ? timelines : {}) }, `${why}; ${whatNow(facts)}`);
      }
      return undefined;
    }
    slot.assertOurs(state, facts.database);
    // Why after the look at the slot: its last reader may have confirmed what was written a moment ago.
    const lost = whyUnusable(state, facts, await slot.insertLsn());
    if (!state.active) {
      if (lost === undefined) {
        if (promoted) {
          log.warn({ slot: slot.name, ...timelines }, 'the server was promoted, and the replication slot has followed');
        }
        return state;
      }
      log.error(
        {
          slot: slot.name,
          reason: lost,
          from: state.confirmedFlushLsn === null ? null : formatLsn(state.confirmedFlushLsn),
        },
        `dropping the replication slot; ${whatNow(facts)}`,
      );
      await slot.drop();
      return undefined;
    }
    if (clock.now() > giveUpAtMs) {
      throw new WaybillError('WAYBILL_SLOT_BUSY', `slot ${slot.name} is in use by pid ${String(state.activePid)}`, {
        hint: 'If nothing runs there, PostgreSQL lets go after wal_sender_timeout.',
      });
    }
    if (!waiting) {
      onPhase('standby');
      log.info({ slot: slot.name, pid: state.activePid }, 'the slot is in use by another connection; waiting for it');
    }
    await pause(clock, SLOT_POLL_MS, failure.signal);
    failure.check();
  }
}

function whatNow({ insertThenDeleteSeen }: SlotFacts): string {
  const read = 'pending rows are read from the table';
  return insertThenDeleteSeen
    ? `${read}, but rows that applications deleted themselves and that were not published yet are lost`
    : read;
}

function wasPromoted({ fromTimeline, timeline }: SlotFacts): boolean {
  return fromTimeline !== null && fromTimeline !== timeline;
}

function whyUnusable(state: SlotState, facts: SlotFacts, insertLsn: Lsn): string | undefined {
  // Newer versions tell why it is lost; older ones know of one reason only.
  if (state.invalidationReason !== null && state.invalidationReason !== 'wal_removed') {
    return `PostgreSQL invalidated it: ${state.invalidationReason}`;
  }
  if (state.walStatus === 'lost') return 'PostgreSQL removed WAL that it needs (max_slot_wal_keep_size)';
  if (facts.replace !== undefined) return facts.replace;
  if (facts.publicationMade) return 'its publication was missing, so it cannot decode what came before';
  if (state.confirmedFlushLsn !== null && state.confirmedFlushLsn > insertLsn) {
    return 'it is ahead of the server, which was restored or failed over';
  }
  if (wasPromoted(facts) && !state.failover) return 'the server was promoted, and the slot did not follow the failover';
  return undefined;
}
