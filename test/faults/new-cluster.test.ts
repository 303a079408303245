import { execFile } from 'node:child_process';
import { realpath, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { runProgram } from '../integration/built-program.js';
import { outboxStage, tally, type OutboxStage } from '../support/outbox-stage.js';
import { killRelays, startRelay } from '../support/relay.js';
import { findPostgres, postgresAccount } from '../support/servers/find-postgres.js';
import type { PostgresServer } from '../support/servers/postgres-server.js';
import { startPostgres } from '../support/servers/postgres.js';
import { Scratch } from '../support/servers/scratch.js';
import { until } from '../support/waiting.js';

const run = promisify(execFile);

/** Dumps one database and restores it into another server, with the programs of the installed PostgreSQL. */
async function moveDatabase(from: string, to: string): Promise<void> {
  const scratch = await Scratch.open();
  const file = join(tmpdir(), `waybill-move-${process.pid}.sql`);
  try {
    const { folder } = await findPostgres(scratch, await postgresAccount(), 'installed');
    // PATH may have links to some of the programs only.
    const programs = dirname(await realpath(join(folder, 'postgres')));
    await run(join(programs, 'pg_dump'), ['--file', file, from]);
    await run(join(programs, 'psql'), ['-q', '-v', 'ON_ERROR_STOP=1', '-f', file, to]);
  } finally {
    await rm(file, { force: true });
    await scratch.remove();
  }
}

describe('an upgrade by dump and restore: another system identifier, no slot', () => {
  let stage: OutboxStage;
  let fresh: PostgresServer;

  beforeAll(async () => {
    [stage, fresh] = await Promise.all([outboxStage(), startPostgres({ own: true })]);
  });
  afterEach(killRelays);
  afterAll(async () => {
    await stage.drop();
    await fresh.close();
  });

  it('F66 F56: it halts with a hint and publishes nothing, refuses a wrong --expect, and after adopt loses nothing', async () => {
    const old = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url });
    await old.waitForPhase('streaming');
    const rows = await stage.write(50);
    await stage.emptied();
    expect(await old.stop()).toBe(0);
    // Written after the relay was stopped, and after that nobody writes to the old server.
    rows.push(...(await stage.write(30)));
    await fresh.createDatabase('moved');
    const url = fresh.url('moved');
    await moveDatabase(stage.database.url, url);
    const client = new pg.Client({ connectionString: url });
    await client.connect();
    const [{ here } = { here: '' }] = (
      await client.query<{ here: string }>('select system_identifier::text as here from pg_control_system()')
    ).rows;
    const environment = { WAYBILL_DATABASE_URL: url, WAYBILL_BROKER_URL: stage.vhost.url };

    const relay = startRelay({ databaseUrl: url, brokerUrl: stage.vhost.url });
    const line = await relay.waitForLog((each) => each.level === 'error', 'the reason why it halts');
    expect(line['err']).toMatchObject({
      code: 'WAYBILL_IDENTITY_CHANGED',
      message: expect.stringContaining(here) as unknown,
      hint: expect.stringContaining('waybill relay adopt') as unknown,
    });
    expect((await client.query('select from waybill.outbox')).rowCount).toBe(30);
    expect((await client.query('select from pg_replication_slots')).rowCount).toBe(0);

    const wrong = await runProgram(['relay', 'adopt', '--expect', '1234567890123456789'], environment);
    expect(wrong).toMatchObject({ code: 1, err: expect.stringContaining('nothing was changed') as unknown });
    // Still halted, also after another look.
    expect(relay.phase()).not.toBe('streaming');
    const right = await runProgram(['relay', 'adopt', '--expect', here], environment);
    expect(right).toMatchObject({ code: 0 });
    // What needs a person is looked at again every 15 s.
    await relay.waitForPhase('streaming', 40_000);
    await until(async () => (await client.query('select from waybill.outbox')).rowCount === 0, {
      what: 'the rows that came along to go out',
      withinMs: 30_000,
    });
    const { rows: late } = await client.query<{ id: string; body: string }>(
      `insert into waybill.outbox (type, payload) values ('order.paid', '{"moved": true}') returning id, payload::text as body`,
    );
    rows.push(...late);
    await until(async () => (await client.query('select from waybill.outbox')).rowCount === 0, { what: 'the new row' });
    expect(await relay.stop()).toBe(0);
    expect(tally(rows, await stage.taken())).toEqual({
      ...{ lost: 0, phantom: 0, differing: [], duplicates: 0 },
      inOrder: true,
    });
    expect((await client.query(`select action from waybill.action_log`)).rows).toEqual([{ action: 'relay.adopt' }]);
    await client.end();
  });
});
