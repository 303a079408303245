/**
 * How long a look at the backlog takes with a million pending rows and ten million in the history, fresh and after the
 * rows were deleted and not vacuumed. Usage: npx tsx test/bench/status.ts [pending] [history]
 */
import pg from 'pg';
import { readBacklog, readParkedErrors } from '../../src/postgres/backlog.js';
import { migrateUp } from '../../src/postgres/migrations.js';
import { startPostgres } from '../support/servers/postgres.js';

const PENDING = Number(process.argv[2] ?? 1_000_000);
const HISTORY = Number(process.argv[3] ?? 10_000_000);

const postgres = await startPostgres({ own: true });
try {
  const client = new pg.Client({ connectionString: postgres.url() });
  client.on('error', () => undefined);
  await client.connect();
  await migrateUp(client);
  const insert = (state: string, rows: number) =>
    client.query(
      `insert into waybill.outbox (type, key, state, hold_no, next_attempt_at, payload)
       select 'bench', 'k' || i % 1000, $1::text, i, now() + interval '1 hour', json_build_object('n', i, 'pad', repeat('x', 200))
       from generate_series(1, $2::int) i`,
      [state, rows],
    );
  await measure('empty');
  await insert('parked', 20_000);
  await insert('scheduled', 20_000);
  await insert('ready', PENDING);
  await client.query(
    `insert into waybill.outbox_history (outcome, id, type, key)
     select 'published', gen_random_uuid(), 'bench', 'k' || i % 1000 from generate_series(1, $1::int) i`,
    [HISTORY],
  );
  await measure(`${PENDING} ready, 40,000 held, ${HISTORY} in the history, fresh`);
  await client.query('analyze waybill.outbox');
  await measure('the same, analysed');
  await client.query('alter table waybill.outbox set (autovacuum_enabled = false)');
  await client.query('delete from waybill.outbox');
  await measure('all deleted, not vacuumed');
  await client.end();

  async function measure(what: string): Promise<void> {
    const times: number[] = [];
    let shown = '';
    for (let n = 0; n < 21; n += 1) {
      const start = performance.now();
      const { states, history } = await readBacklog(client, 'waybill');
      await readParkedErrors(client, 'waybill');
      times.push(performance.now() - start);
      shown = [
        ...states.map(({ state, count, accuracy }) => `${state} ${accuracy} ${count}`),
        `history about ${history.rows}`,
      ].join(', ');
    }
    const first = times[0] ?? 0;
    times.sort((a, b) => a - b);
    console.log(
      `${what}: first ${first.toFixed(1)} ms, median ${times[10]?.toFixed(1)} ms, longest ${times.at(-1)?.toFixed(1)} ms`,
    );
    console.log(`  ${shown}`);
  }
} finally {
  await postgres.close();
}
