import type { Config } from '../config/load.js';
import {
  callForRows,
  listEntries,
  mayRead,
  readActions,
  readHistoryRows,
  readOutboxRow,
  readStates,
  takeSnapshot,
  type ActionEntry,
  type Answer,
  type MessageRow,
  type OutboxEntry,
  type RowSnapshot,
} from '../postgres/operator-rows.js';
import { readReplayable, replayRows, takeHistorySnapshot } from '../postgres/history-rows.js';
import type { Moment, RowFilter } from '../postgres/row-filter.js';
import { pause, systemClock } from '../runtime/clock.js';
import { operatorWork, type SqlClient } from './session.js';

export type { ActionEntry, Answer, MessageRow, Moment, OutboxEntry, RowFilter, RowSnapshot };

type Database = Config['database'];

/** What an operator can do: to a row that is held, or (replay) to a message that had been published. */
export type RowAct = 'retry' | 'discard' | 'replay';

/** The states that each act changes. */
export const ACTS_ON: Readonly<Record<RowAct, readonly string[]>> = {
  retry: ['parked', 'scheduled'],
  discard: ['parked', 'blocked', 'scheduled'],
  replay: ['published', 'accepted'],
};

/** Whether the function did what was asked. */
export function isDone(act: RowAct, { answer }: Answer): boolean {
  return act === 'replay'
    ? answer.startsWith('replayed')
    : answer === { retry: 'scheduled', discard: 'discarded' }[act];
}

/** Rows of the outbox, and whether there are more than were asked for. */
export interface OutboxList {
  rows: OutboxEntry[];
  more: boolean;
}

/** All that is known of a message. What this role may not read is null. */
export interface MessageRecord {
  outbox: MessageRow | null;
  history: MessageRow[] | null;
  actions: ActionEntry[] | null;
}

/** What is to be done to which rows. */
export interface RowOrder {
  act: RowAct;
  ids: readonly string[];
  reason: string | null;
  /** Rows that have left these states since they were chosen stay as they are; null: whatever their state. */
  states: readonly string[] | null;
  /** Replay: under new ids, so that consumers take the copies for other messages. */
  asNew?: boolean;
  /** At most so many rows a second; undefined: as fast as the database takes them. */
  rowsPerSecond?: number | undefined;
}

/** Most rows of one bulk act, so that their ids fit into memory; the next call takes the next ones. */
export const MOST_BULK_ROWS = 500_000;

/** Rows in one transaction: it locks them, and the relay waits for none of them longer than this takes. */
const BATCH_ROWS = 500;
const DOING: Readonly<Record<RowAct, string>> = {
  retry: 'retrying rows',
  discard: 'discarding rows',
  replay: 'replaying messages',
};
const LOOK_MS = 150_000;
const BATCH_MS = 75_000;
/** What a timer can count to. */
const LONGEST_MS = 2 ** 31 - 1;

/** The first rows that the filter lets through, in the order of the table. */
export function listOutbox(database: Database, filter: RowFilter, limit: number): Promise<OutboxList> {
  return operatorWork(database, 'listing the outbox', async (client) => {
    const rows = await listEntries(client, database.schema, filter, limit + 1);
    return { rows: rows.slice(0, limit), more: rows.length > limit };
  });
}

/** A message in the outbox, in the history and in the log of what operators did; undefined if none of them knows it. */
export function showMessage(database: Database, id: string, withBody: boolean): Promise<MessageRecord | undefined> {
  return operatorWork(database, 'looking for the message', async (client) => {
    const { schema } = database;
    const outbox = (await readOutboxRow(client, schema, id, withBody)) ?? null;
    const history = (await mayRead(client, schema, 'outbox_history'))
      ? await readHistoryRows(client, schema, id, withBody)
      : null;
    const actions = (await mayRead(client, schema, 'action_log')) ? await readActions(client, schema, id) : null;
    const isKnown = outbox !== null || (history?.length ?? 0) > 0 || (actions?.length ?? 0) > 0;
    return isKnown || history === null ? { outbox, history, actions } : undefined;
  });
}

/** The rows that the filter lets through now, at most `limit`; later ones are not touched by what follows. */
export function chooseRows(
  database: Database,
  act: RowAct,
  filter: RowFilter,
  limit = MOST_BULK_ROWS,
): Promise<RowSnapshot> {
  const take = act === 'replay' ? takeHistorySnapshot : takeSnapshot;
  return operatorWork(database, 'choosing the rows', (client) =>
    take(client, database.schema, filter, Math.min(limit, MOST_BULK_ROWS)),
  );
}

/** The states of these rows, without touching them. */
export function lookAtRows(database: Database, act: RowAct, ids: readonly string[]): Promise<Answer[]> {
  const look = act === 'replay' ? readReplayable : readStates;
  return operatorWork(database, 'looking at the rows', (client) => look(client, database.schema, ids));
}

/**
 * Retries, discards or replays rows in batches, each a transaction, and tells each batch's answers as it is committed.
 * When it rejects, the batches that were told stay done.
 */
export function actOnRows(
  database: Database,
  order: RowOrder,
  onBatch: (answers: readonly Answer[]) => void,
  clock = systemClock,
): Promise<void> {
  const { act, ids, reason, states, asNew = false, rowsPerSecond } = order;
  const batchRows = Math.max(1, Math.min(BATCH_ROWS, Math.floor((rowsPerSecond ?? Infinity) / 2)));
  const pacedMs = rowsPerSecond === undefined ? 0 : (ids.length / rowsPerSecond) * 1000;
  const limitMs = Math.min(LONGEST_MS, LOOK_MS + pacedMs + Math.ceil(ids.length / batchRows) * BATCH_MS);
  const inBatches = async (client: SqlClient): Promise<void> => {
    const startedAt = clock.now();
    for (let start = 0; start < ids.length; start += batchRows) {
      const batch = ids.slice(start, start + batchRows);
      if (rowsPerSecond !== undefined) {
        await pause(clock, Math.max(0, startedAt + (start / rowsPerSecond) * 1000 - clock.now()));
      }
      onBatch(
        act === 'replay'
          ? await replayRows(client, database.schema, batch, reason, asNew)
          : await callForRows(client, database.schema, act, batch, reason, states),
      );
    }
  };
  return operatorWork(database, DOING[act], inBatches, limitMs);
}
