import type { Config } from '../config/load.js';
import { closeQuietly } from '../postgres/connect.js';
import { toDatabaseError } from '../postgres/errors.js';
import { mayReadInbox } from '../postgres/inbox-rows.js';
import { checkSchema } from '../postgres/migrations.js';
import { mayRead } from '../postgres/operator-rows.js';
import { connectToPrimary } from '../postgres/primary.js';
import {
  startOfTail,
  tailInbox,
  tailOutbox,
  type TailEvent,
  type TailPage,
  type TailPosition,
} from '../postgres/tail-rows.js';
import { pause, type Clock } from '../runtime/clock.js';
import { databaseEndpoints } from './endpoints.js';
import type { SqlClient } from './session.js';

export type { TailEvent };

/** Told by whoever follows. */
export interface TailListener {
  onEvents(events: readonly TailEvent[]): void;
  /** Once it follows; `outbox` and `inbox` say whether this role may read what is needed for them. */
  onReady(sees: { outbox: boolean; inbox: boolean }): void;
  /** The connection was lost, and is made anew. */
  onLost(why: Error): void;
}

const LOOK_MS = 500;
const AGAIN_MS = 2_000;
const LIMITS = { lockTimeoutMs: 1_000, statementTimeoutMs: 10_000 };
/** So many marks are kept; more than two looks can hold. */
const MARKS = 60_000;

/**
 * Tells what happens to messages from now on, until the signal aborts. Looks twice a second by indexes at what has left
 * the tables or came in: writers and relay do nothing for it. What happened while the connection was lost is told late.
 * Rejects only if the first connection fails.
 */
export async function followMessages(
  database: Config['database'],
  listener: TailListener,
  clock: Clock,
  signal: AbortSignal,
): Promise<void> {
  const seen = new Set<string>();
  let position: TailPosition | undefined;
  let startedAt: Date | undefined;
  while (!signal.aborted) {
    let client: SqlClient | undefined;
    try {
      client = await connect(database);
      const sees = await look(client, database.schema);
      if (position === undefined) {
        ({ position, at: startedAt } = await startOfTail(client, database.schema, sees.inbox));
        listener.onReady(sees);
      }
      while (!signal.aborted) {
        const pages: TailPage[] = [];
        for (const [read, isSeen] of [
          [tailOutbox, sees.outbox],
          [tailInbox, sees.inbox],
        ] as const) {
          if (!isSeen) continue;
          const page: TailPage = await read(client, database.schema, position);
          pages.push(page);
          position = page.next;
        }
        const since = startedAt;
        const fresh = pages
          .flatMap(({ events }) => events)
          .filter(({ at, mark }) => (since === undefined || at >= since) && !seen.has(mark));
        for (const { mark } of fresh) seen.add(mark);
        forgetOldest(seen);
        listener.onEvents(fresh.sort((a, b) => a.at.getTime() - b.at.getTime()));
        if (!pages.some(({ isFull }) => isFull)) await pause(clock, LOOK_MS, signal);
      }
    } catch (error) {
      const why = toDatabaseError(error, 'following the messages');
      if (position === undefined) throw why;
      listener.onLost(why);
      await pause(clock, AGAIN_MS, signal);
    } finally {
      if (client) closeQuietly(client);
    }
  }
}

async function connect(database: Config['database']): Promise<SqlClient> {
  const { client } = await connectToPrimary(databaseEndpoints(database), {
    applicationName: 'waybill tail',
    // A connection that dies fails the look that waits for it, or the next one.
    onError: () => undefined,
    limits: LIMITS,
  });
  return client;
}

async function look(client: SqlClient, schema: string): Promise<{ outbox: boolean; inbox: boolean }> {
  await checkSchema(client, { schema });
  const outbox = (await mayRead(client, schema, 'outbox_history')) && (await mayRead(client, schema, 'outbox'));
  return { outbox, inbox: (await mayReadInbox(client, schema)) === 'yes' };
}

function forgetOldest(seen: Set<string>): void {
  for (const mark of seen) {
    if (seen.size <= MARKS) return;
    seen.delete(mark);
  }
}
