import type { Config } from '../config/load.js';
import { nearestName } from '../config/problems.js';
import { WaybillError } from '../core/errors.js';
import { sqlState } from '../postgres/errors.js';
import { toInboxError } from '../postgres/inbox-errors.js';
import {
  beginRename,
  callForConsumer,
  callForMessages,
  cancelRename,
  countRedacted,
  countRunning,
  estimateInbox,
  estimateRows,
  finishRename,
  forgetConsumer,
  groupDead,
  listConsumerRows,
  listInboxRows,
  readConsumerNames,
  readContents,
  readStatuses,
  redactRows,
  renameRows,
  takeInboxSnapshot,
  type ConsumerEntry,
  GROUPED_ROWS,
  type DeadGroup,
  type InboxAct,
  type InboxContent,
  type RedactedMessages,
  type RedactedPlace,
  type RenameStep,
} from '../postgres/inbox-operations.js';
import { mayReadInbox, readAttempts, readInboxRows, type InboxAttempt, type InboxRow } from '../postgres/inbox-rows.js';
import type { Answer, Body, RowSnapshot } from '../postgres/operator-rows.js';
import type { RowFilter } from '../postgres/row-filter.js';
import { pause, systemClock } from '../runtime/clock.js';
import { MOST_BULK_ROWS } from './outbox-admin.js';
import { operatorWork, type SqlClient } from './session.js';

export { GROUPED_ROWS };
export type { ConsumerEntry, DeadGroup, InboxAct, InboxRow, RedactedPlace };

type Database = Config['database'];

/** The statuses that each act changes. */
export const INBOX_ACTS_ON: Readonly<Record<InboxAct, readonly string[]>> = {
  retry: ['dead', 'waiting'],
  replay: ['done', 'discarded', 'dead', 'waiting'],
  discard: ['pending', 'waiting', 'blocked', 'dead'],
  defer: ['pending', 'waiting'],
};

/** Whether the function did what was asked; `blocked`: as soon as an earlier message of its key is through. */
export function isInboxDone(act: InboxAct, { answer }: Answer): boolean {
  if (act === 'discard') return answer === 'discarded';
  if (act === 'defer') return answer === 'waiting';
  return answer === 'pending' || answer === 'blocked';
}

/** One message at one consumer with everything that is kept of it. */
export type InboxMessageRecord = InboxRow & {
  attempts: InboxAttempt[];
  content: Omit<InboxContent, 'body'>;
  /** Undefined unless it was asked for; null where it is gone. */
  body?: Body | null;
};

/** What is to be done to which messages of a consumer. */
export interface InboxOrder {
  act: InboxAct;
  consumer: string;
  ids: readonly string[];
  reason: string | null;
  /** Rows that have left these statuses since they were chosen stay as they are; null: whatever their status. */
  statuses: readonly string[] | null;
  force: boolean;
  delayMs: number;
  rowsPerSecond: number | undefined;
}

/** Messages in one transaction: each may hold its key, and a receiver waits for it. */
const BATCH_ROWS = 100;
const BATCH_MS = 75_000;
const LOOK_MS = 150_000;
const LONGEST_MS = 2 ** 31 - 1;
const ATTEMPTS = 5;
const CONFLICTS = ['40P01', '40001', '55P03'];
const EXPORT_PAGE = 500;
const DRAIN_LOOK_MS = 500;

/** Rows of the inbox that the filter lets through, and whether there are more. */
export function listInbox(database: Database, filter: RowFilter, limit: number) {
  return work(database, 'listing the inbox', async (client) => {
    const rows = await listInboxRows(client, database.schema, filter, limit + 1);
    return { rows: rows.slice(0, limit), more: rows.length > limit };
  });
}

/** A message at every consumer that has it, or at one. */
export function showInbox(
  database: Database,
  id: string,
  consumer: string | undefined,
  withBody: boolean,
): Promise<InboxMessageRecord[]> {
  return work(database, 'looking for the message', async (client) => {
    const rows = await readInboxRows(client, database.schema, id);
    return records(
      client,
      database.schema,
      rows.filter((row) => consumer === undefined || row.consumer === consumer),
      withBody,
    );
  });
}

/** The messages of one consumer that the filter lets through now. */
export function chooseMessages(database: Database, filter: RowFilter, limit = MOST_BULK_ROWS): Promise<RowSnapshot> {
  return work(database, 'choosing the messages', (client) =>
    takeInboxSnapshot(client, database.schema, filter, Math.min(limit, MOST_BULK_ROWS)),
  );
}

/** The statuses of these messages, without touching them. */
export function lookAtMessages(database: Database, consumer: string, ids: readonly string[]): Promise<Answer[]> {
  return work(database, 'looking at the messages', (client) => readStatuses(client, database.schema, consumer, ids));
}

/** Acts on messages in batches, each a transaction, and tells each batch's answers as it is committed. */
export function actOnMessages(
  database: Database,
  order: InboxOrder,
  onBatch: (answers: readonly Answer[]) => void,
  clock = systemClock,
): Promise<void> {
  const { ids, rowsPerSecond } = order;
  const batchRows = Math.max(1, Math.min(BATCH_ROWS, Math.floor((rowsPerSecond ?? Infinity) / 2)));
  const pacedMs = rowsPerSecond === undefined ? 0 : (ids.length / rowsPerSecond) * 1000;
  const limitMs = Math.min(LONGEST_MS, LOOK_MS + pacedMs + Math.ceil(ids.length / batchRows) * BATCH_MS);
  const inBatches = async (client: SqlClient): Promise<void> => {
    const startedAt = clock.now();
    for (let start = 0; start < ids.length; start += batchRows) {
      if (rowsPerSecond !== undefined) {
        await pause(clock, Math.max(0, startedAt + (start / rowsPerSecond) * 1000 - clock.now()));
      }
      const batch = { ...order, ids: ids.slice(start, start + batchRows) };
      onBatch(await again(() => callForMessages(client, database.schema, order.act, batch)));
    }
  };
  return work(database, 'changing messages of the inbox', inBatches, limitMs);
}

/** Repeats what lost against a receiver that held the same keys: the whole batch was undone. */
async function again<T>(call: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await call();
    } catch (error) {
      if (attempt === ATTEMPTS || !CONFLICTS.includes(sqlState(error) ?? '')) throw error;
    }
  }
}

/** The dead by what they have in common. */
export function groupDeadMessages(
  database: Database,
  filter: RowFilter,
  by: 'error' | 'type' | 'id',
  limit: number,
): Promise<DeadGroup[]> {
  return work(database, 'grouping the dead', (client) => groupDead(client, database.schema, filter, by, limit));
}

/** Every dead message that the filter lets through, page by page, those that died first of each consumer first. */
export function exportDead(
  database: Database,
  filter: RowFilter,
  options: { limit: number; withBody: boolean },
  onMessage: (message: InboxMessageRecord) => void,
): Promise<void> {
  const dead = { ...filter, states: ['dead'] };
  const all = async (client: SqlClient): Promise<void> => {
    const { schema } = database;
    const { ids } = await takeInboxSnapshot(client, schema, dead, Math.min(options.limit, MOST_BULK_ROWS));
    for (let start = 0; start < ids.length; start += EXPORT_PAGE) {
      const page = { ...dead, ids: ids.slice(start, start + EXPORT_PAGE) };
      const rows = await listInboxRows(client, schema, page, EXPORT_PAGE * 10);
      for (const record of await records(client, schema, rows, options.withBody)) onMessage(record);
    }
  };
  return work(database, 'exporting the dead', all, LONGEST_MS);
}

/** Most names that are told. */
const TOLD_NAMES = 20;

/**
 * Throws WAYBILL_CONSUMER_UNKNOWN, with the name that was probably meant, unless a consumer of that name is registered or
 * configured, or has messages: otherwise a wrong name looks as if nothing waited, or nothing was dead.
 */
export function assertConsumerKnown(
  database: Database,
  consumer: string,
  configured: readonly string[],
  needs: 'any' | 'registered' = 'any',
): Promise<void> {
  return work(database, 'looking for the consumer', async (client) => {
    const { registered, hasMessages } = await readConsumerNames(client, database.schema, consumer);
    if (registered.includes(consumer)) return;
    const isConfigured = configured.includes(consumer);
    if (needs === 'any' && (isConfigured || hasMessages)) return;
    if (isConfigured || hasMessages) {
      const what = isConfigured ? 'is configured, but not registered yet' : 'has messages, but is not registered';
      throw new WaybillError('WAYBILL_CONSUMER_UNKNOWN', `Consumer ${consumer} ${what}.`, {
        hint: '`waybill run` registers the consumers of its configuration when it starts.',
      });
    }
    const known = [...new Set([...registered, ...configured])].sort();
    const meant = nearestName(consumer, known);
    throw new WaybillError(
      'WAYBILL_CONSUMER_UNKNOWN',
      `No consumer is called ${consumer}${meant === undefined ? '' : `; ${meant} is probably meant`}.`,
      { hint: knownText(known) },
    );
  });
}

function knownText(known: readonly string[]): string {
  if (known.length === 0) return 'There is none; `waybill run` registers those of its configuration.';
  const others = known.length > TOLD_NAMES ? ', ...; all of them: waybill consumer list' : '.';
  return `These are known: ${known.slice(0, TOLD_NAMES).join(', ')}${others}`;
}

/** Every consumer with its backlog. */
export function listConsumers(database: Database): Promise<ConsumerEntry[]> {
  return work(database, 'listing the consumers', (client) => listConsumerRows(client, database.schema));
}

/** Pauses or resumes a consumer and gives the answer: paused, already paused, resumed, not paused, unknown. */
export function switchConsumer(
  database: Database,
  act: 'pause' | 'resume',
  consumer: string,
  reason: string | null,
): Promise<string> {
  return work(database, `${act === 'pause' ? 'pausing' : 'resuming'} the consumer`, (client) =>
    callForConsumer(client, database.schema, act, consumer, reason),
  );
}

/** About how many messages of the consumer would be given the new name. */
export function estimateRename(database: Database, consumer: string): Promise<number> {
  return work(database, 'counting the messages', (client) => estimateRows(client, database.schema, consumer));
}

/**
 * F128: gives a consumer another name, with its rows and grants, so that it still knows what it has applied; gives the
 * number of rows. Each step is a transaction of its own. What is interrupted goes on when it is called again; until it is
 * through, nothing is received or handed out under either name.
 */
export function renameConsumerTo(
  database: Database,
  names: { from: string; to: string },
  reason: string | null,
  onMoved: (moved: number) => void,
): Promise<number> {
  const { schema } = database;
  const rename = async (client: SqlClient): Promise<number> => {
    const pids = await again(() => beginRename(client, schema, names));
    // Where rows have the new name already, it was waited for before.
    if (pids.length > 0 && (await again(() => cancelRename(client, schema, names)))) {
      throw new WaybillError(
        'WAYBILL_STILL_IN_USE',
        `Consumer ${names.from} is not renamed: transactions that may have used it are open (processes ${pids.join(', ')}).`,
        { hint: 'Stop the programs that run it; wait for a backup to end. Nothing was changed.' },
      );
    }
    let moved = 0;
    const renameAll = async (): Promise<void> => {
      for (let after: string | null = '0'; after !== null;) {
        const from: string = after;
        const step: RenameStep = await again(() => renameRows(client, schema, names, from));
        moved += step.moved;
        after = step.next;
        if (step.moved > 0 && after !== null) onMoved(moved);
      }
    };
    do await renameAll();
    while (!(await again(() => finishRename(client, schema, names, reason, moved))));
    return moved;
  };
  return work(database, 'renaming the consumer', rename, LONGEST_MS);
}

/**
 * Takes back a rename that was begun, so that messages are received again under the old name. Throws
 * WAYBILL_STILL_IN_USE when messages have the new name already, WAYBILL_CONSUMER_UNKNOWN when none was begun.
 */
export function cancelRenameOf(database: Database, names: { from: string; to: string }): Promise<void> {
  return work(database, 'taking the rename back', async (client) => {
    const { schema } = database;
    if (await again(() => cancelRename(client, schema, names))) return;
    const consumers = await listConsumerRows(client, schema);
    if (!consumers.some(({ name, renamingTo }) => name === names.from && renamingTo === names.to)) {
      throw new WaybillError('WAYBILL_CONSUMER_UNKNOWN', `No rename of ${names.from} to ${names.to} was begun.`, {
        hint: 'See what is: waybill consumer list',
      });
    }
    throw new WaybillError('WAYBILL_STILL_IN_USE', `Messages are at consumer ${names.to} already.`, {
      hint: `Go on with it: waybill consumer rename ${names.from} ${names.to}`,
    });
  });
}

/** Removes a consumer that is gone for good, with its rows; the answer: forgotten, unknown, unfinished rows: N. */
export function forgetConsumerRows(
  database: Database,
  consumer: string,
  reason: string | null,
  force: boolean,
): Promise<string> {
  const all = async (client: SqlClient): Promise<string> => {
    for (;;) {
      const answer = await forgetConsumer(client, database.schema, consumer, reason, force);
      if (answer !== 'more') return answer;
    }
  };
  return work(database, 'forgetting the consumer', all, LONGEST_MS);
}

/**
 * Waits until no row of the consumer is being handled any more; gives how many still are when the time is over. Rows
 * whose lease has ended count as not handled.
 */
export function drainConsumer(
  database: Database,
  consumer: string,
  limitMs: number,
  onProgress: (running: number) => void,
  clock = systemClock,
): Promise<number> {
  const untilIdle = async (client: SqlClient): Promise<number> => {
    const startedAt = clock.now();
    for (let before = -1; ;) {
      const running = await countRunning(client, database.schema, consumer);
      if (running === 0 || clock.now() - startedAt >= limitMs) return running;
      if (running !== before) onProgress(running);
      before = running;
      await pause(clock, DRAIN_LOOK_MS);
    }
  };
  return work(database, 'draining the consumer', untilIdle, limitMs + LOOK_MS);
}

/** About how many messages are looked through to find those of a key. */
export function estimateSearch(database: Database): Promise<number> {
  return work(database, 'looking at the inbox', (client) => estimateInbox(client, database.schema));
}

/** How many rows of each place a redaction would change; nothing is changed or locked. */
export function countRedaction(database: Database, what: RedactedMessages): Promise<RedactedPlace[]> {
  return work(database, 'counting', (client) => countRedacted(client, database.schema, what), LONGEST_MS);
}

/** Removes the content of messages of a key or an id everywhere. */
export function redact(
  database: Database,
  what: RedactedMessages & { reason: string | null },
): Promise<RedactedPlace[]> {
  return work(database, 'redacting', (client) => again(() => redactRows(client, database.schema, what)), LONGEST_MS);
}

async function records(
  client: SqlClient,
  schema: string,
  rows: readonly InboxRow[],
  withBody: boolean,
): Promise<InboxMessageRecord[]> {
  const seqs = rows.map(({ seq }) => seq);
  const contents = new Map((await readContents(client, schema, seqs, withBody)).map((one) => [one.seq, one]));
  const all: InboxMessageRecord[] = [];
  for (const row of rows) {
    const found = contents.get(row.seq);
    if (!found) continue;
    const { body, ...content } = found;
    const attempts = await readAttempts(client, schema, row.seq);
    all.push({ ...row, attempts, content, ...(withBody ? { body: bodyOf(body) } : {}) });
  }
  return all;
}

function bodyOf(body: Buffer | null): Body | null {
  if (body === null) return null;
  const text = body.toString('utf8');
  return Buffer.from(text, 'utf8').equals(body)
    ? { encoding: 'text', data: text }
    : { encoding: 'base64', data: body.toString('base64') };
}

function work<T>(
  database: Database,
  doing: string,
  act: (client: SqlClient) => Promise<T>,
  limitMs?: number,
): Promise<T> {
  const checked = async (client: SqlClient): Promise<T> => {
    if ((await mayReadInbox(client, database.schema)) === 'absent') {
      throw new WaybillError('WAYBILL_SCHEMA_TOO_OLD', `Schema ${database.schema} has no inbox yet.`, {
        hint: 'Apply the missing migrations: waybill migrate up',
      });
    }
    try {
      return await act(client);
    } catch (error) {
      // Its hint says how to go on.
      if (sqlState(error) === 'WB005') throw toInboxError(error, doing);
      throw error;
    }
  };
  return operatorWork(database, doing, checked, limitMs);
}
