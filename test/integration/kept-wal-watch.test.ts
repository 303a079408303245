import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { watchKeptWal } from '../../src/app/kept-wal-watch.js';
import type { Config } from '../../src/config/load.js';
import { ReplicationStream } from '../../src/postgres/stream.js';
import { systemClock } from '../../src/runtime/clock.js';
import type { FreshDatabase } from '../support/database.js';
import { ManualClock } from '../support/manual-clock.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { until } from '../support/waiting.js';

const INTERVAL_MS = 10_000;

describe('the watch over the WAL that the slot keeps (F41, design 3.4)', () => {
  let database: FreshDatabase;
  let slot: string;
  let clock: ManualClock;
  let stop: AbortController;
  let watch: Promise<void>;
  let away: boolean;
  let told: string[];
  let relay: { source: string; name: string; maxKeptWalBytes: number };

  beforeAll(async () => {
    database = await migratedDatabase();
    slot = `${database.name}_kept`;
  });
  beforeEach(async () => {
    await database.query(`select pg_create_logical_replication_slot($1, 'pgoutput')`, [slot]);
    await database.query(
      `insert into waybill.relay (name, slot, source, epoch, checkpoint_lsn, checkpoint_at)
       values ('default', $1, 'wal', 7, pg_current_wal_lsn(), now())`,
      [slot],
    );
    await database.query(`select pg_logical_emit_message(false, 'filler', repeat('x', 100000))`);
    clock = new ManualClock();
    stop = new AbortController();
    away = true;
    told = [];
    relay = { source: 'wal', name: 'default', maxKeptWalBytes: 50_000 };
    const tell = (_: object, message: string): void => void told.push(message);
    const tls = { mode: 'insecure-plaintext' };
    watch = watchKeptWal(
      () => ({ database: { url: database.url, schema: 'waybill', tls }, relay }) as unknown as Config,
      { info: tell, warn: tell, error: tell, debug: tell },
      clock,
      () => away,
      stop.signal,
    );
  });
  afterEach(async () => {
    stop.abort();
    await watch;
    await database.query('delete from waybill.relay');
    await database.query(
      'select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1 and not active',
      [slot],
    );
  });
  afterAll(() => database.drop());

  /** Lets the time to the next look pass, and the look end. */
  async function look(): Promise<void> {
    clock.advance(INTERVAL_MS);
    await until(() => clock.pending === 1, { what: 'the look to end' });
  }

  /** The slot as it was and the relay untouched, or what became of them. */
  async function kept(): Promise<boolean> {
    const [now] = await database.query<{ slots: number; epoch: string; checkpoint: boolean }>(
      `select (select count(*)::int from pg_replication_slots where slot_name = $1) as slots, epoch::text as epoch,
         checkpoint_lsn is not null as checkpoint from waybill.relay`,
      [slot],
    );
    if (now?.slots === 1 && now.checkpoint) return true;
    expect(now).toEqual({ slots: 0, epoch: '8', checkpoint: false });
    return false;
  }

  const update = (set: string): Promise<unknown> => database.query(`update waybill.relay set ${set}`);

  it('gives it up at the second look at which nobody has moved, and says so', async () => {
    await look();
    expect(await kept()).toBe(true);
    await look();
    expect(await kept()).toBe(false);
    expect(told).toEqual([
      'gave up the replication slot because it kept more WAL than maxKeptWal; the table will be read',
    ]);
  });

  it.each<{ when: string; between: () => unknown }>([
    { when: 'the broker is back for this process', between: () => (away = false) },
    { when: 'another process has taken the relay over', between: () => update('epoch = epoch + 1') },
    { when: 'somebody settles, as in a table pass', between: () => update('checkpoint_at = clock_timestamp()') },
    { when: 'less than maxKeptWal is kept', between: () => (relay.maxKeptWalBytes = 1_000_000_000) },
    { when: 'relay.source is table now', between: () => (relay.source = 'table') },
    { when: 'the relay recorded polls the table', between: () => update(`source = 'table'`) },
    { when: 'only the slot can bring some rows', between: () => update('insert_then_delete_seen = true') },
  ])('keeps it when $when', async ({ between }) => {
    await look();
    await between();
    await look();
    expect(await kept()).toBe(true);
  });

  it('begins anew when the broker goes away again', async () => {
    await look();
    away = false;
    await look();
    away = true;
    await look();
    expect(await kept()).toBe(true);
    await look();
    expect(await kept()).toBe(false);
  });

  it('keeps it while somebody reads it, and begins anew when he has gone', async () => {
    await look();
    const reader = await ReplicationStream.open({
      endpoint: { url: database.url },
      applicationName: 'a relay in another process',
      schema: 'waybill',
      slot,
      publication: 'waybill_outbox',
      startLsn: 0n,
      walSenderTimeoutMs: 60_000,
      clock: systemClock,
      onEvent: () => undefined,
      onEnd: () => undefined,
    });
    await look();
    await look();
    expect(await database.query('select epoch::text from waybill.relay')).toEqual([{ epoch: '7' }]);
    await reader.abort();
    await until(
      async () =>
        (await database.query('select from pg_replication_slots where slot_name = $1 and not active', [slot])).length >
        0,
      { what: 'the slot to be free' },
    );
    await look();
    expect(await kept()).toBe(true);
    await look();
    expect(await kept()).toBe(false);
    expect(told).toHaveLength(1);
  });
});
