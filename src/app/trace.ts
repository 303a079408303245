import type { Config } from '../config/load.js';
import {
  mayReadInbox,
  readAttempts,
  readHindrance,
  readInboxRows,
  readNeighbours,
  type Hindrance,
  type InboxAttempt,
  type InboxRow,
  type Neighbours,
} from '../postgres/inbox-rows.js';
import {
  mayRead,
  readActions,
  readHistoryRows,
  readOutboxRow,
  type ActionEntry,
  type MessageRow,
} from '../postgres/operator-rows.js';
import { operatorWork, type SqlClient } from './session.js';
import { verdictOf, type Verdict } from './trace-verdict.js';

/** One thing that happened to the message. */
export interface TraceEvent {
  at: Date;
  /** Outbox, broker, a consumer or an operator. */
  where: string;
  what: string;
}

/** One message's whole life. What this role may not read, or what is not installed, is null. */
export interface Trace {
  id: string;
  outbox: MessageRow | null;
  history: MessageRow[] | null;
  inbox:
    | (InboxRow & {
        attempts: InboxAttempt[];
        neighbours: Neighbours | null;
        /** Of an unfinished one: what keeps it from being taken up. */
        hindrance: Hindrance | null;
      })[]
    | null;
  actions: ActionEntry[] | null;
  events: TraceEvent[];
  verdict: Verdict;
}

const UUID = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

/** Looks for the id in every table that this role may read. */
export function traceMessage(database: Config['database'], id: string): Promise<Trace> {
  return operatorWork(database, 'tracing the message', async (client) => {
    const { schema } = database;
    const outbox = UUID.test(id) ? ((await readOutboxRow(client, schema, id, false)) ?? null) : null;
    const history = (await mayRead(client, schema, 'outbox_history'))
      ? await (UUID.test(id) ? readHistoryRows(client, schema, id, false) : [])
      : null;
    const actions = (await mayRead(client, schema, 'action_log')) ? await readActions(client, schema, id) : null;
    const inbox =
      (await mayReadInbox(client, schema)) === 'yes' ? await readConsumers(client, schema, id, actions !== null) : null;
    const verdict = verdictOf({ id, outbox, history, inbox });
    const events = eventsOf({ outbox, history, inbox, actions });
    return { id, outbox, history, inbox, actions, events, verdict };
  });
}

async function readConsumers(client: SqlClient, schema: string, id: string, mayReadActions: boolean) {
  const rows = [];
  for (const row of await readInboxRows(client, schema, id)) {
    const attempts = await readAttempts(client, schema, row.seq);
    const isOpen = row.status !== 'done' && row.status !== 'discarded';
    const neighbours = isOpen ? await readNeighbours(client, schema, row) : null;
    const hindrance = isOpen && row.status !== 'dead' ? await readHindrance(client, schema, row, mayReadActions) : null;
    rows.push({ ...row, attempts, neighbours, hindrance });
  }
  return rows;
}

/** Everything with a time, in order. */
function eventsOf({ outbox, history, inbox, actions }: Pick<Trace, 'outbox' | 'history' | 'inbox' | 'actions'>) {
  const events: TraceEvent[] = [];
  const add = (at: Date | null | undefined, where: string, what: string): void => {
    if (at) events.push({ at, where, what });
  };
  for (const row of [...(history ?? []), ...(outbox ? [outbox] : [])]) add(row.createdAt, 'outbox', 'written');
  for (const row of history ?? []) {
    // The time is that of the settle, up to a checkpoint interval later: a consumer may have had it before.
    add(
      row.publishedAt,
      'broker',
      `confirmed by then: exchange ${row.exchange ?? ''}, routing key ${row.routingKey ?? ''}`,
    );
    if (row.state !== 'published') add(row.settledAt, 'outbox', `left as ${row.state}`);
  }
  if (outbox?.nextAttemptAt) add(outbox.nextAttemptAt, 'outbox', 'the next attempt is due');
  for (const row of inbox ?? []) {
    add(
      row.receivedAt,
      row.consumer,
      row.messageId === row.originalId || row.originalId === null ? 'received' : `received, kept as ${row.messageId}`,
    );
    for (const { at, number, verdict, error } of row.attempts) {
      add(at, row.consumer, `attempt ${number}: ${verdict ?? 'not finished'}${error === null ? '' : `: ${error}`}`);
    }
    if (row.status === 'done' || row.status === 'discarded' || row.status === 'dead') {
      const what = { done: 'applied', discarded: 'discarded', dead: `dead: ${row.deadReason ?? row.error ?? ''}` };
      add(row.processedAt, row.consumer, what[row.status]);
    } else if (row.status === 'waiting') add(row.nextAttemptAt, row.consumer, 'the next attempt is due');
    else if (row.status === 'running') add(row.leaseUntil, row.consumer, 'its lease ends');
  }
  for (const { at, actor, action, reason } of actions ?? []) {
    add(at, `operator ${actor}`, `${action}${reason === null ? '' : `: ${reason}`}`);
  }
  return events.sort((a, b) => a.at.getTime() - b.at.getTime());
}
