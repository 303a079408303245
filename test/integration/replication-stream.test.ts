import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { parseLsn, type Lsn } from '../../src/core/lsn.js';
import { connectSql } from '../../src/postgres/connect.js';
import type { WalEvent } from '../../src/postgres/pgoutput.js';
import { RelayStore } from '../../src/postgres/relay-store.js';
import { ReplicationStream } from '../../src/postgres/stream.js';
import { TableReader } from '../../src/postgres/table-reader.js';
import { systemClock } from '../../src/runtime/clock.js';
import type { FreshDatabase } from '../support/database.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { until } from '../support/waiting.js';

const SLOT = 'waybill_stream_test';

describe('the replication stream', () => {
  let database: FreshDatabase;
  let slot: string;
  const open: ReplicationStream[] = [];

  beforeAll(async () => {
    database = await migratedDatabase();
    slot = `${SLOT}_${database.name.slice(-10)}`;
    await database.query("select pg_create_logical_replication_slot($1, 'pgoutput')", [slot]);
  });
  afterEach(async () => {
    await Promise.all(open.splice(0).map((stream) => stream.abort()));
    await until(async () => !(await facts()).active, { what: 'the slot to be free' });
  });
  afterAll(() => database.drop());

  const facts = async (): Promise<{ active: boolean; confirmed: Lsn; end: Lsn }> => {
    const [row] = await database.query<{ active: boolean; confirmed: string; end: string }>(
      `select active, confirmed_flush_lsn::text as confirmed, pg_current_wal_insert_lsn()::text as "end"
       from pg_replication_slots where slot_name = $1`,
      [slot],
    );
    return { active: row?.active ?? false, confirmed: parseLsn(row?.confirmed ?? ''), end: parseLsn(row?.end ?? '') };
  };
  const start = async (
    options: { slot?: string; startLsn?: Lsn; events?: WalEvent[] } = {},
  ): Promise<ReplicationStream> => {
    const stream = await ReplicationStream.open({
      endpoint: { url: database.url },
      applicationName: 'stream test',
      schema: 'waybill',
      slot: options.slot ?? slot,
      publication: 'waybill_outbox',
      startLsn: options.startLsn ?? 0n,
      walSenderTimeoutMs: 60_000,
      clock: systemClock,
      onEvent: (event) => options.events?.push(event),
      onEnd: () => undefined,
    });
    open.push(stream);
    return stream;
  };
  const types = (events: readonly WalEvent[]): string[] =>
    events.flatMap((event) => (event.kind === 'row' ? [event.row.type] : []));

  it('facts 1, 2: nothing is acknowledged but what was reported, however long it takes', async () => {
    const events: WalEvent[] = [];
    await start({ events });
    const before = await facts();
    await database.query("select waybill.publish('unreported')");
    await until(() => types(events).includes('unreported'), { what: 'the row' });
    // The client's own timer acknowledges what was received after ten seconds, looked at each second; it has had its time.
    const received = performance.now();
    await until(() => performance.now() - received > 12_500, {
      withinMs: 15_000,
      everyMs: 250,
      what: "the time of the client's timer to pass",
    });
    expect((await facts()).confirmed).toBe(before.confirmed);
  });

  it('facts 10, 13: a position below the confirmed one is forwarded, and what is reported moves it exactly there', async () => {
    const events: WalEvent[] = [];
    const stream = await start({ events });
    await until(() => events.some((event) => event.kind === 'commit'), { what: 'the row of before' });
    const commit = events.findLast((event) => event.kind === 'commit');
    const endLsn = commit?.kind === 'commit' ? commit.endLsn : 0n;
    stream.report(endLsn, endLsn, true);
    await until(async () => (await facts()).confirmed === endLsn, { what: 'the confirmed position' });
    await stream.close();
    const again: WalEvent[] = [];
    await start({ startLsn: 1n, events: again });
    await database.query("select waybill.publish('next')");
    await until(() => types(again).includes('next'), { what: 'the next row' });
    expect(types(again)).toEqual(['next']);
  });

  it('fact 7: a refused START_REPLICATION rejects with what to do, and leaves no connection', async () => {
    await expect(start({ slot: 'waybill_no_such_slot' })).rejects.toMatchObject({ name: 'WaybillError' });
    await until(
      async () =>
        (await database.query("select from pg_stat_activity where application_name = 'stream test'")).length === 0,
      { what: 'its connection to be gone' },
    );
  });

  it('fact 54: a position that the table reader gives is past every visible commit, and flushed', async () => {
    const client = await connectSql({ url: database.url }, 'fence test', () => undefined);
    await database.query("insert into waybill.relay (name, epoch) values ('r', 1)");
    const store = new RelayStore(client, {
      schema: 'waybill',
      relay: 'r',
      epoch: '1',
      history: 'off',
      ordering: 'pipelined',
    });
    const table = new TableReader(await database.connect(), 'waybill', store, systemClock);
    const writer = await database.connect();
    await writer.query('set synchronous_commit = off');
    await writer.query("select waybill.publish('asynchronous')");
    const { rows } = await writer.query<{ lsn: string }>('select pg_current_wal_insert_lsn()::text as lsn');
    const position = await table.position();
    const [flushed] = await database.query<{ lsn: string }>('select pg_current_wal_flush_lsn()::text as lsn');
    expect(position >= parseLsn(rows[0]?.lsn ?? '')).toBe(true);
    expect(parseLsn(flushed?.lsn ?? '') >= position).toBe(true);
    await client.end();
  });
});
