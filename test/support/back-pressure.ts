import type { FreshDatabase } from './database.js';
import { until } from './waiting.js';

/** So many looks in a row must find the sender waiting: it does so for moments in any lively stream. */
const LOOKS = 20;

/** Waits until PostgreSQL cannot get rid of what it has to send, because the relay takes nothing more in. */
export async function senderHeldUp(database: FreshDatabase): Promise<void> {
  let looks = 0;
  await until(
    async () => {
      const [sender] = await database.query<{ waits: boolean }>(
        `select wait_event is not distinct from 'WalSenderWriteData' as waits from pg_stat_activity
         where pid = (select active_pid from pg_replication_slots where database = current_database())`,
      );
      looks = sender?.waits === true ? looks + 1 : 0;
      return looks >= LOOKS;
    },
    { withinMs: 60_000, everyMs: 50, what: 'the sender of the log to be held up' },
  );
}
