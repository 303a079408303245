import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { RelayStore } from '../../src/postgres/relay-store.js';
import type { FreshDatabase } from '../support/database.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { startPostgres } from '../support/servers/postgres.js';
import type { PostgresServer } from '../support/servers/postgres-server.js';

describe.each(['installed', 'embedded'] as const)(
  '3.3 who has locked rows of the outbox, seen by a role that sees nothing of other sessions (%s)',
  (version) => {
    let server: PostgresServer;
    let database: FreshDatabase;
    let relay: pg.Client;
    let seqs: { seq: string }[];
    const sessions: pg.Client[] = [];

    beforeAll(async () => {
      server = await startPostgres({ version, own: true });
      database = await migratedDatabase({ server });
      await database.query(
        `create role plain login password 'secret'; grant usage on schema waybill to plain; grant select on waybill.outbox to plain`,
      );
      seqs = await database.query(
        `insert into waybill.outbox (type) select 't' from generate_series(1, 3) returning seq::text as seq`,
      );
      const url = new URL(database.url);
      url.username = 'plain';
      url.password = 'secret';
      relay = new pg.Client({ connectionString: url.href });
      await relay.connect();
    });
    afterEach(async () => {
      for (const client of sessions.splice(0)) await client.end();
    });
    afterAll(async () => {
      await relay.end();
      await database.drop();
      await server.close();
    });

    const holders = () =>
      new RelayStore(relay, {
        schema: 'waybill',
        relay: 'default',
        epoch: '1',
        history: 'off',
        ordering: 'pipelined',
      }).lockHolders(seqs);

    /** A session in a transaction that has done this; gives its process. */
    async function session(name: string, sql: string): Promise<number> {
      const client = await database.connect();
      sessions.push(client);
      await client.query(`set application_name = '${name}'`);
      await client.query('begin');
      await client.query(sql);
      return (await client.query<{ pid: number }>('select pg_backend_pid() as pid')).rows[0]?.pid ?? 0;
    }

    it('nobody, although others write and read the table', async () => {
      await session('writer', `insert into waybill.outbox (type) values ('mine')`);
      await session('reader', 'select from waybill.outbox');
      expect(await holders()).toEqual([]);
    });

    it.each(['select from waybill.outbox for update', `update waybill.outbox set type = 'u'`])(
      'a session with: %s',
      async (sql) => {
        const pid = await session('culprit', `savepoint s; ${sql}`);
        await session('writer', `insert into waybill.outbox (type) values ('mine')`);
        expect(await holders()).toMatchObject([{ pid, application: 'culprit', prepared: null }]);
      },
    );

    it('several sessions that share the lock', async () => {
      const pids = [];
      for (const name of ['a', 'b']) pids.push(await session(name, 'select from waybill.outbox for share'));
      expect((await holders()).map(({ pid }) => pid)).toEqual(pids.sort((a, b) => a - b));
    });

    it('a prepared transaction', async () => {
      await session('gone', 'select from waybill.outbox for update');
      await sessions[0]?.query(`prepare transaction 'it''s mine'`);
      expect(await holders()).toMatchObject([{ pid: null, prepared: "it's mine" }]);
      await database.query(`rollback prepared 'it''s mine'`);
      expect(await holders()).toEqual([]);
    });
  },
);
