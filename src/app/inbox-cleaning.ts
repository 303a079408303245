import { quoteIdentifier } from '../core/identity.js';
import { pause, type Clock } from '../runtime/clock.js';
import type { Logger } from '../telemetry/log.js';
import type { ConsumerDatabase } from './consumer-database.js';

const INTERVAL_MS = 60_000;
const BATCH_ROWS = 5_000;
/** Between two batches, so that cleaning is never what the database is busy with. */
const BREATH_MS = 100;

/**
 * Removes what its retention is over for (design 4.8), in small batches on a connection of its own. Of several processes
 * one does it: the others find the advisory lock taken and look again later.
 */
export async function cleanNowAndThen(
  database: ConsumerDatabase,
  options: { schema: string; consumers: readonly string[]; clock: Clock; log: Logger; stopping: AbortSignal },
): Promise<void> {
  const { clock, log, stopping } = options;
  const over = async (): Promise<boolean> => {
    await pause(clock, INTERVAL_MS * (0.5 + clock.random()), stopping);
    return stopping.aborted;
  };
  while (!(await over())) {
    try {
      await clean(database, options);
    } catch (error) {
      log.warn({ err: error }, 'the inbox could not be cleaned; trying again later');
    }
  }
}

async function clean(
  database: ConsumerDatabase,
  options: { schema: string; consumers: readonly string[]; clock: Clock; stopping: AbortSignal },
): Promise<void> {
  const { clock, stopping, consumers } = options;
  const schema = quoteIdentifier(options.schema);
  for (const consumer of consumers) {
    for (let more = true; more && !stopping.aborted;) {
      more = await database.use('cleaning the inbox', async (client) => {
        const { rows } = await client.query<{ removed: string; remaining: string }>(
          `select c.removed, c.remaining from (
             select pg_try_advisory_xact_lock(hashtextextended($1 || '.inbox_clean', 0)) as mine
           ) l cross join lateral ${schema}.inbox_clean($2, $3) c where l.mine`,
          [options.schema, consumer, BATCH_ROWS],
        );
        return rows.some(({ removed, remaining }) => Number(removed) > 0 && Number(remaining) > 0);
      });
      if (more) await pause(clock, BREATH_MS, stopping);
    }
  }
}
