import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Status } from '../../src/app/status.js';
import { runProgram } from '../integration/built-program.js';
import { outboxStage, tally, type OutboxStage, type WrittenRow } from '../support/outbox-stage.js';
import { killRelays, startRelay, type RelayProcess } from '../support/relay.js';
import { until } from '../support/waiting.js';

describe('a database in which others are slow', () => {
  let stage: OutboxStage;
  let relay: RelayProcess;

  beforeEach(async () => {
    stage = await outboxStage();
    relay = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url });
    await relay.waitForPhase('streaming');
  });
  afterEach(async () => {
    await killRelays();
    await stage.drop();
  });

  async function sizes(): Promise<{ confirmed: bigint; history: number; bytes: bigint }> {
    const [row] = await stage.database.query<Record<'confirmed' | 'history' | 'bytes', string>>(
      `select (confirmed_flush_lsn - '0/0')::text as confirmed,
         (select count(*) from waybill.outbox_history)::text as history,
         pg_relation_size('waybill.outbox')::text as bytes
       from pg_replication_slots where database = current_database()`,
    );
    return {
      confirmed: BigInt(row?.confirmed ?? 0),
      history: Number(row?.history),
      bytes: BigInt(row?.bytes ?? 0),
    };
  }

  /** Sequential scans, as far as their sessions have reported them. */
  async function scansOfTheOutbox(): Promise<string | undefined> {
    const [row] = await stage.database.query<{ scans: string }>(
      `select seq_scan::text as scans from pg_stat_user_tables where relid = 'waybill.outbox'::regclass`,
    );
    return row?.scans;
  }

  it('F132 F44: a transaction that is open before, during and after costs bloat and kept WAL, and nothing else', async () => {
    expect(await relay.stop()).toBe(0);
    const old = await stage.database.connect();
    await old.query('begin isolation level repeatable read');
    await old.query('create temporary table its_own (n int)');
    await old.query('select count(*) from waybill.outbox');
    const late = await old.query<{ id: string }>(
      `insert into waybill.outbox (type, payload) values ('order.paid', '{"late": true}') returning id`,
    );
    relay = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url });
    await relay.waitForPhase('streaming');
    const rows: WrittenRow[] = [];
    const tookMs: number[] = [];
    let last = await sizes();
    const scans = await scansOfTheOutbox();
    for (let round = 0; round < 6; round += 1) {
      const began = performance.now();
      rows.push(...(await stage.write(1_000, { together: true })));
      // Nothing here looks at the outbox itself, so that a scan of it is the relay's.
      const next = await until(
        async () => {
          const now = await sizes();
          return now.confirmed > last.confirmed && now.history === rows.length && now;
        },
        { what: `position and history to go on in round ${round}` },
      );
      tookMs.push(performance.now() - began);
      expect(next.bytes).toBeGreaterThanOrEqual(last.bytes);
      last = next;
    }
    // A relay that scans the table gets slower with each dead row.
    expect(await scansOfTheOutbox()).toBe(scans);
    // Generous, because the machine is shared.
    expect(Math.max(...tookMs.slice(1))).toBeLessThan(10 * Math.max(...tookMs.slice(0, 2)));
    // Not one of them can be cleaned away.
    await stage.database.query('vacuum waybill.outbox');
    const bloated = (await sizes()).bytes;
    expect(bloated).toBeGreaterThan(1_000_000n);
    const environment = { WAYBILL_DATABASE_URL: stage.database.url, WAYBILL_BROKER_URL: stage.vhost.url };
    const status = JSON.parse((await runProgram(['status', '--json'], environment)).out) as Status;
    // F44: both lags are shown, and they differ.
    expect(status.slot?.keptWalBytes ?? 0).toBeGreaterThan((status.slot?.lagBytes ?? 0) + 1_000_000);
    await old.query('commit');
    rows.push({ id: late.rows[0]?.id ?? '', body: '{"late": true}' });
    await stage.emptied();
    // Now the space is there for the next ones.
    await stage.database.query('vacuum waybill.outbox');
    const cleaned = (await sizes()).bytes;
    rows.push(...(await stage.write(1_000, { together: true })));
    await stage.emptied();
    expect((await sizes()).bytes).toBeLessThanOrEqual(cleaned > bloated ? cleaned : bloated);
    expect(await relay.stop()).toBe(0);
    expect(tally(rows, await stage.taken())).toEqual({
      ...{ lost: 0, phantom: 0, differing: [], duplicates: 0 },
      inOrder: true,
    });
  });

  it('F7: history partitions come and go under load, with locks on the parent: settling waits at most, nothing is lost or doubled', async () => {
    const rows: WrittenRow[] = [];
    let writing = true;
    const writer = (async () => {
      while (writing) rows.push(...(await stage.write(20)));
    })();
    const keep = (days: number, retention: string): Promise<unknown> =>
      stage.database.query('select * from waybill.keep_history($1, $2::interval)', [days, retention]);
    const partitions = async (): Promise<number> =>
      (
        await stage.database.query<{ n: number }>(
          `select count(*)::int as n from pg_inherits where inhparent = 'waybill.outbox_history'::regclass`,
        )
      )[0]?.n ?? 0;
    const before = await partitions();
    for (let round = 1; round <= 3; round += 1) {
      // A day that is over, for the retention to drop.
      await stage.database.query(
        `create table waybill.outbox_history_2020010${round} (like waybill.outbox_history including all);
         alter table waybill.outbox_history attach partition waybill.outbox_history_2020010${round}
           for values from ('2020-01-0${round}') to ('2020-01-0${round + 1}')`,
      );
      await keep(3 + round, '7 days');
    }
    await until(partitions, { what: 'partitions' });
    expect(await partitions()).toBeGreaterThan(before);
    const locker = await stage.database.connect();
    for (const mode of ['access share', 'share update exclusive', 'access exclusive']) {
      await locker.query('begin');
      await locker.query(`lock table waybill.outbox_history in ${mode} mode`);
      const published = rows.length;
      // The owner's chore gives up in time, and does not stand in the queue before the relay.
      await keep(20, '7 days').catch(() => undefined);
      await until(() => rows.length > published + 60, { what: 'writers to go on', withinMs: 30_000 });
      if (mode === 'access exclusive') {
        await relay.waitForLog((line) => line.msg.startsWith('settling waits for a lock'), 'word of the lock');
      }
      await locker.query('rollback');
    }
    writing = false;
    await writer;
    await stage.emptied();
    await until(async () => (await sizes()).history === rows.length, { what: 'the whole history' });
    expect(relay.log.filter((line) => line.msg.includes('session ended'))).toEqual([]);
    expect(await relay.stop()).toBe(0);
    expect(tally(rows, await stage.taken())).toMatchObject({ lost: 0, phantom: 0, differing: [], duplicates: 0 });
  });
});
