import type pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { killRelays, startRelay, type RelayProcess } from '../support/relay.js';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { until } from '../support/waiting.js';

/** The cleaner of `waybill run`, design 4.8. Time passes by setting rows back; rounds come every tenth of a second. */

let scene: ReceiverScene;
const query = <Row extends object>(sql: string, values?: unknown[]): Promise<Row[]> =>
  scene.database.query<Row & Record<string, unknown>>(sql, values);

/** Rows that the daemon deletes in one statement at most. */
const BATCH = 5_000;
const ENV = { WAYBILL_RETENTION_INTERVAL: '100ms' };
const CONSUMERS = `billing: { queue: billing, handler: { kind: store }, retention: { ids: 14d, bodies: 1d, dead: 2d } }
keyed: { queue: keyed, order: key, handler: { kind: store }, retention: { dead: 15d } }`;

beforeAll(async () => {
  scene = await receiverScene();
  // What the cleaner's statements did, and a gate before each of them: who has the lock 42 keeps it waiting there.
  await query(`
    create table swept (what text, pid int, rows int);
    create function gate() returns trigger language plpgsql as $$
      begin
        if current_setting('application_name') = 'waybill cleaner' then perform pg_advisory_xact_lock_shared(42); end if;
        return null;
      end $$;
    create function note() returns trigger language plpgsql as $$
      begin
        if current_setting('application_name') = 'waybill cleaner' then
          insert into public.swept select tg_op, pg_backend_pid(), count(*) from gone;
        end if;
        return null;
      end $$;
    create trigger gate before delete on waybill.inbox execute function gate();
    create trigger note_delete after delete on waybill.inbox referencing old table as gone execute function note();
    create trigger note_update after update on waybill.inbox referencing old table as gone execute function note();`);
});
afterAll(() => scene.drop());
beforeEach(async () => {
  await query(
    `truncate swept, waybill.inbox, waybill.inbox_attempt, waybill.idempotency, waybill.freshness, waybill.action_log`,
  );
});
afterEach(async () => {
  for (const one of holding.splice(0)) await one.query('rollback; select pg_advisory_unlock_all()');
  await killRelays();
  // What a killed daemon had begun goes on to its end, and would deadlock with the next truncate.
  const left = `select from pg_stat_activity where datname = current_database() and application_name like 'waybill%'`;
  await until(async () => (await query(left)).length === 0, { what: 'the sessions of the daemon to end' });
});

/** A connection that holds things up until the end of the test at the latest. */
async function holder(): Promise<pg.Client> {
  const client = await scene.database.connect();
  holding.push(client);
  return client;
}
const holding: pg.Client[] = [];

/** Starts a daemon and waits until it has registered its consumers. */
async function daemon(): Promise<RelayProcess> {
  const started = scene.start(CONSUMERS, { env: ENV });
  await started.waitForLog(({ msg }) => msg === 'consuming', 'the daemon to consume');
  return started;
}

/** Rows that came to that status so many days ago. */
async function aged(status: string, days: number, ids: string, options: { consumer?: string; key?: string } = {}) {
  await query(
    `insert into waybill.inbox (consumer, message_id, key, body, body_hash, status, dead_reason, received_at, processed_at,
       next_attempt_at, claim_token, lease_until)
     select $1, id, $2, '{}', sha256('{}'), $3, case when $3 = 'dead' then 'never' end,
       now() - make_interval(days => $4), case when $3 in ('done', 'dead', 'discarded') then now() - make_interval(days => $4) end,
       case when $3 = 'waiting' then now() + interval '1 day' end, case when $3 = 'running' then gen_random_uuid() end,
       case when $3 = 'running' then now() + interval '1 day' end
     from unnest(case when $5 like '%*%' then array(select replace($5, '*', n::text) from generate_series(1, 12000) n) else array[$5] end) id`,
    [options.consumer ?? 'billing', options.key ?? null, status, days, ids],
  );
}

const left = async (): Promise<string[]> =>
  (
    await query<{ row: string }>(
      `select message_id || ' ' || status || case when body is null then ' bodiless' else '' end as row from waybill.inbox order by seq`,
    )
  ).map(({ row }) => row);
const countLeft = async (): Promise<number | undefined> =>
  (await query<{ n: number }>('select count(*)::int as n from waybill.inbox'))[0]?.n;
/** The cleaners' connections that stand before the gate, and when each began its last statement. */
const cleaners = (): Promise<{ pid: number; atGate: boolean; since: string }[]> =>
  query(
    `select a.pid, a.query_start::text as since, exists (
       select from pg_locks l where l.pid = a.pid and l.locktype = 'advisory' and l.objid = 42 and not l.granted) as "atGate"
     from pg_stat_activity a where a.application_name = 'waybill cleaner' and a.datname = current_database() order by a.pid`,
  );
/** Waits until the connection has begun so many further statements. */
async function rounds(of: (one: { pid: number; atGate: boolean }) => boolean, count: number): Promise<void> {
  const seen = new Set<string>();
  await until(
    async () => {
      for (const one of await cleaners()) if (of(one)) seen.add(`${one.pid} ${one.since}`);
      return seen.size > count;
    },
    { what: `${count} rounds of a cleaner` },
  );
}

test('removes ids, bodies and dead rows after their time, in bounded batches, and nothing that is unfinished', async () => {
  await daemon();
  await aged('done', 15, 'old-*');
  await aged('discarded', 15, 'given up long ago');
  await aged('done', 13, 'done 13');
  await aged('discarded', 13, 'discarded 13');
  await aged('done', 0, 'done 0');
  await aged('dead', 15, 'dead 15');
  await aged('dead', 3, 'dead 3');
  await aged('dead', 1, 'dead 1');
  for (const status of ['pending', 'running', 'waiting']) await aged(status, 400, `${status} 400`);
  await aged('dead', 400, 'head', { consumer: 'keyed', key: 'k' });
  await aged('blocked', 400, 'follower', { consumer: 'keyed', key: 'k' });
  await aged('dead', 400, 'alone', { consumer: 'keyed', key: 'l' });
  await aged('done', 15, 'of a consumer that nobody runs', { consumer: 'former' });
  await query(`insert into waybill.consumer (name, queue) values ('former', 'former')`);
  const expected = [
    'done 13 done bodiless',
    'discarded 13 discarded bodiless',
    'done 0 done',
    // Its time as a dead row is over, that of its id is not.
    'dead 3 discarded bodiless',
    'dead 1 dead',
    'pending 400 pending',
    'running 400 running',
    'waiting 400 waiting',
    'head dead',
    'follower blocked',
  ];
  await until(async () => JSON.stringify(await left()) === JSON.stringify(expected), {
    what: `the inbox to be ${JSON.stringify(expected)}`,
  }).catch(async () => expect(await left()).toEqual(expected));
  const batches = await query<{ rows: number }>('select rows from swept where rows > 0 order by rows desc');
  expect(batches[0]?.rows).toBe(BATCH);
  expect(batches.reduce((sum, { rows }) => sum + rows, 0)).toBeGreaterThanOrEqual(12_004);
  // Some rounds later it is still so.
  await rounds(() => true, 10);
  expect(await left()).toEqual(expected);
  // A copy of what is remembered is none that is applied again, also of the dead.
  await scene.send('billing', [{ messageId: 'dead 3' }, { messageId: 'done 13' }, { messageId: 'new' }]);
  await scene.waitForRows(1, `message_id = 'new'`);
  expect(await left()).toEqual([...expected, 'new pending']);
  await query(`delete from waybill.consumer where name = 'former'`);
});

test('of two daemons one cleans; meanwhile messages are received', async () => {
  await daemon();
  await daemon();
  const gate = await holder();
  await gate.query('select pg_advisory_lock(42)');
  await aged('done', 15, 'old-*');
  await until(async () => (await cleaners()).some(({ atGate }) => atGate), { what: 'a cleaner at the gate' });
  await rounds(({ atGate }) => !atGate, 10);
  expect((await cleaners()).map(({ atGate }) => atGate).sort()).toEqual([false, true]);
  await scene.send('billing', [{ messageId: 'a' }, { messageId: 'b' }]);
  await scene.send('keyed', [{ messageId: 'c', key: 'k' }]);
  await scene.waitForRows(3, `message_id in ('a', 'b', 'c')`);
  expect((await cleaners()).filter(({ atGate }) => atGate)).toHaveLength(1);
  await gate.query('select pg_advisory_unlock(42)');
  await until(async () => (await countLeft()) === 3, { what: 'the old rows to be gone' });
});

describe('goes on later', () => {
  test('after its connection died in the middle of a batch', async () => {
    const running = await daemon();
    const gate = await holder();
    await gate.query('select pg_advisory_lock(42)');
    await aged('done', 15, 'old-*');
    const stuck = await until(async () => (await cleaners()).find(({ atGate }) => atGate), { what: 'it to be at it' });
    await query('select pg_terminate_backend($1)', [stuck.pid]);
    await until(async () => (await cleaners()).some(({ pid }) => pid !== stuck.pid), { what: 'another connection' });
    expect(await countLeft()).toBe(12_000);
    await gate.query('select pg_advisory_unlock(42)');
    await until(async () => (await countLeft()) === 0, { what: 'the old rows to be gone' });
    expect(
      running.log.filter(({ level, what }) => level === 'warn' && what === 'messages of consumer billing'),
    ).toHaveLength(1);
  });

  test('when a row, the table or the lock of cleaners was not to be had', async () => {
    const running = await daemon();
    const other = await holder();
    await other.query(`select pg_advisory_lock(hashtextextended('waybill.inbox_clean', 0))`);
    await aged('done', 15, 'a');
    await aged('done', 15, 'b');
    await rounds(() => true, 10);
    expect(await countLeft()).toBe(2);
    await other.query(`begin; select from waybill.inbox where message_id = 'a' for update`);
    await other.query(`select pg_advisory_unlock_all()`);
    await until(async () => (await countLeft()) === 1, { what: 'the row to be gone that nobody has' });
    await other.query('rollback');
    await until(async () => (await countLeft()) === 0, { what: 'the other row to be gone' });

    await other.query(`select pg_advisory_lock(hashtextextended('waybill.inbox_clean', 0))`);
    await aged('done', 15, 'c');
    await other.query(`begin; lock table waybill.inbox in share mode; select pg_advisory_unlock_all()`);
    await running.waitForLog(
      ({ level, what }) => level === 'warn' && what === 'messages of consumer billing',
      'it to say that it cannot',
    );
    expect(await countLeft()).toBe(1);
    await other.query('rollback');
    await until(async () => (await countLeft()) === 0, { what: 'the row to be gone' });
  });
});

test('what first_time and newer were told, and the log, without any consumer', async () => {
  await query(`
    delete from waybill.consumer;
    insert into waybill.idempotency (scope, key, first_at)
    select 's', 'old ' || n, now() - interval '31 days' from generate_series(1, 12000) n
    union all select 's', 'young', now() - interval '29 days';
    insert into waybill.freshness (scope, key, version, at)
    select 's', 'old ' || n, 1, now() - interval '91 days' from generate_series(1, 12000) n
    union all select 's', 'young', 1, now() - interval '89 days' union all select '', '', 1, now() - interval '91 days';
    insert into waybill.action_log (action, target, at)
    select 'outbox.retry', 'old', now() - interval '366 days' from generate_series(1, 12000)
    union all select 'outbox.retry', 'young', now() - interval '364 days';`);
  startRelay({ databaseUrl: scene.database.url, brokerUrl: scene.vhost.url, env: ENV });
  await until(
    async () => {
      const [row] = await query<{ all: string }>(
        `select (select string_agg(key, ',') from waybill.idempotency) || ' ' || (select string_agg(key, ',') from waybill.freshness)
           || ' ' || (select string_agg(target, ',') from waybill.action_log) as all`,
      );
      return row?.all === 'young young young';
    },
    { withinMs: 20_000, what: 'one young row of each to be left' },
  );
});

test('F21: has no connection between rounds that are seconds apart', async () => {
  const started = scene.start(CONSUMERS, { env: { WAYBILL_RETENTION_INTERVAL: '1s' } });
  await started.waitForLog(({ msg }) => msg === 'consuming', 'the daemon to consume');
  const sweptBy = async (id: string): Promise<number | undefined> => {
    await aged('done', 15, id);
    await until(async () => (await left()).length === 0, { what: `${id} to be gone` });
    return (await query<{ pid: number }>('select pid from swept order by ctid desc limit 1'))[0]?.pid;
  };
  const first = await sweptBy('one');
  await until(async () => (await cleaners()).length === 0, { what: 'the connection to end' });
  expect(await sweptBy('two')).not.toBe(first);
});
