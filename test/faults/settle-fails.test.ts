import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { Status } from '../../src/app/status.js';
import { buildProgram, runProgram } from '../integration/built-program.js';
import { ADMIN_ON, adminOf, type Admin } from '../support/admin.js';
import { killRelays } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import { until } from '../support/waiting.js';

const ROWS = 500;

describe('rows that are published and cannot be settled', () => {
  let scene: RelayScene;

  beforeAll(() => buildProgram());
  beforeEach(async () => {
    scene = await relayScene();
  });
  afterEach(async () => {
    await killRelays();
    await scene.drop();
  });

  async function problems(admin: Admin): Promise<Status['problems']> {
    const { out } = await runProgram(['status', '--json'], {
      WAYBILL_DATABASE_URL: scene.database.url,
      WAYBILL_BROKER_URL: scene.vhost.url,
      WAYBILL_ADMIN_LISTEN: `127.0.0.1:${admin.port}`,
    });
    return (JSON.parse(out) as Status).problems;
  }

  it('F41, F121: a full disk under the history: ever longer pauses, not ready, few copies; all is well once there is room', async () => {
    await scene.database.query(`
      create function waybill.full_disk() returns trigger language plpgsql as
        $$ begin raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$;
      create trigger full_disk before insert on waybill.outbox_history for each row execute function waybill.full_disk()`);
    const relay = scene.start({ env: { ...ADMIN_ON, WAYBILL_RELAY_HISTORY: 'trace' } });
    const admin = await adminOf(relay);
    await relay.waitForPhase('streaming');
    const ids = await scene.publish(ROWS);
    const ended = (): number => relay.log.filter((line) => line.msg.includes('session ended')).length;
    // After the sixth the pause is 3.2 s: in as much time as all of these took, less than one more.
    await until(() => ended() >= 6, { what: 'six sessions to fail', withinMs: 40_000 });
    const reasons = new Set<string | null | undefined>();
    const atMs = performance.now();
    while (performance.now() - atMs < 2_500) reasons.add((await admin.ready()).parts[0]?.reason);
    expect(ended()).toBe(6);
    expect([...reasons].filter((reason) => reason === null)).toEqual([]);
    expect(scene.probe.messages.length).toBeLessThanOrEqual(ROWS * 7);
    await scene.database.query('drop trigger full_disk on waybill.outbox_history');
    await scene.settled(40_000);
    await until(async () => (await admin.ready()).ready, { what: 'a ready relay' });
    scene.expectIds(ids, { copies: ROWS * 8 });
    expect(await relay.stop()).toBe(0);
  });

  it('fact 16: a deleted row that the table does not take back stops nobody else, is told, and is parked once it can be', async () => {
    await scene.database.query('alter table waybill.outbox add column tenant text check (tenant is not null)');
    const relay = scene.start({ env: ADMIN_ON });
    const admin = await adminOf(relay);
    await relay.waitForPhase('streaming');
    await scene.database.query(`do $$ begin
      insert into waybill.outbox (type, payload, exchange, tenant) values ('bad', '{}', 'nowhere', 'a');
      delete from waybill.outbox where type = 'bad';
    end $$`);
    const told = (): boolean =>
      relay.log.some((line) => line['sqlState'] === '23514' && line['constraint'] === 'outbox_tenant_check');
    await until(told, { what: 'word of the constraint' });
    const rows = await scene.database.query<{ id: string }>(
      "insert into waybill.outbox (type, payload, tenant) select 'good', '{}', 'a' from generate_series(1, 100) returning id",
    );
    await scene.probe.waitForDistinct(100);
    await scene.settled();
    scene.expectIds(rows.map(({ id }) => id));
    expect(relay.log.filter((line) => line.msg.includes('session ended'))).toEqual([]);
    // It is seen, and it holds the position back: nothing is lost when the relay is killed now.
    const held = (await scene.slot())?.confirmed;
    expect(await admin.metric('waybill_outbox_refused')).toBe(1);
    expect(await admin.ready()).toMatchObject({ ready: true, parts: [{ detail: { refusedRows: 1, lockedRows: 0 } }] });
    const [problem] = (await problems(admin)).filter(({ id }) => id === 'refused-rows');
    expect(problem).toMatchObject({ next: 'waybill doctor' });
    expect(problem?.problem).toContain('constraint outbox_tenant_check of your own refuses it (SQLSTATE 23514)');
    await relay.kill9();
    const again = scene.start({ env: ADMIN_ON });
    await again.waitForLog((line) => line['sqlState'] === '23514', 'the row to come again');
    expect((await scene.slot())?.confirmed).toBe(held);
    await scene.database.query('alter table waybill.outbox drop constraint outbox_tenant_check');
    await until(
      async () => (await scene.database.query("select from waybill.outbox where state = 'parked'")).length === 1,
      { what: 'the bad row to be parked', withinMs: 40_000 },
    );
    await until(async () => ((await scene.slot())?.confirmed ?? 0n) > (held ?? 0n), { what: 'the position to move' });
    expect(await (await adminOf(again)).metric('waybill_outbox_refused')).toBe(0);
    expect(await again.stop()).toBe(0);
  });

  it.each([
    {
      by: 'a foreign key to its id',
      refuse: `create table public.shipments (message uuid constraint shipments_message references waybill.outbox (id));
        insert into public.shipments select id from waybill.outbox where type = 'bad'`,
      allow: 'drop table public.shipments',
      told: { sqlState: '23503', constraint: 'shipments_message', table: 'shipments' },
    },
    {
      by: 'a trigger',
      refuse: `create function public.keep() returns trigger language plpgsql as
          $$ begin if old.type = 'bad' then raise exception 'kept'; end if; return old; end $$;
        create trigger keep before delete on waybill.outbox for each row execute function public.keep()`,
      allow: 'drop trigger keep on waybill.outbox',
      told: { sqlState: 'P0001', trigger: 'keep on waybill.outbox' },
    },
    {
      by: 'a trigger that returns NULL',
      refuse: `create function public.keep() returns trigger language plpgsql as
          $$ begin if old.type = 'bad' then return null; end if; return old; end $$;
        create trigger keep before delete on waybill.outbox for each row execute function public.keep()`,
      allow: 'drop trigger keep on waybill.outbox',
      told: { sqlState: null, table: 'outbox', trigger: 'keep on waybill.outbox' },
    },
    {
      by: 'a constraint of the history',
      refuse: `alter table waybill.outbox_history add constraint no_bad check (type <> 'bad')`,
      allow: 'alter table waybill.outbox_history drop constraint no_bad',
      told: { sqlState: '23514', constraint: 'no_bad' },
    },
  ])(
    'a row that was published and that $by keeps: told, the others are settled; settled once it can be',
    async (of) => {
      const first = scene.start({ env: { WAYBILL_RELAY_HISTORY: 'trace' } });
      await first.waitForPhase('streaming');
      expect(await first.stop()).toBe(0);
      const insert = (type: string, n: number): Promise<{ id: string }[]> =>
        scene.database.query(
          `insert into waybill.outbox (type) select $1 from generate_series(1, $2::int) returning id`,
          [type, n],
        );
      const ids = [...(await insert('good', 50)), ...(await insert('bad', 1)), ...(await insert('good', 50))];
      await scene.database.query(of.refuse);
      const relay = scene.start({ env: { ...ADMIN_ON, WAYBILL_RELAY_HISTORY: 'trace' } });
      const admin = await adminOf(relay);
      const line = await relay.waitForLog((each) => each['sqlState'] !== undefined, 'word of what refuses it');
      expect(line).toMatchObject({ ...of.told, level: 'error', messageId: ids[50]?.id, refusedRows: 1 });
      ids.push(...(await insert('good', 100)));
      const [written] = await scene.database.query<{ lsn: string }>(
        "select (pg_current_wal_insert_lsn() - '0/0')::text as lsn",
      );
      await scene.probe.waitForDistinct(201);
      const left = (): Promise<unknown[]> => scene.database.query('select type, state from waybill.outbox');
      await until(async () => (await left()).length === 1, { what: 'all others to be settled' });
      expect(await left()).toEqual([{ type: 'bad', state: 'ready' }]);
      scene.expectIds(ids.map(({ id }) => id));
      expect(relay.log.filter(({ msg }) => msg.includes('session ended'))).toEqual([]);
      expect(await admin.metric('waybill_outbox_refused')).toBe(1);
      expect((await admin.ready()).ready).toBe(true);
      const [problem] = (await problems(admin)).filter(({ id }) => id === 'refused-rows');
      expect(problem?.problem).toContain(
        of.told.sqlState === null
          ? 'trigger keep on waybill.outbox of your own returns NULL for it'
          : `of your own refuses it (SQLSTATE ${of.told.sqlState})`,
      );
      expect(relay.log.filter(({ msg }) => msg.includes('somebody else has locked'))).toEqual([]);
      // It is in the table, so the log need not keep what came after it.
      await until(async () => ((await scene.slot())?.confirmed ?? 0n) >= BigInt(written?.lsn ?? 0), {
        what: 'the position to pass it',
        withinMs: 30_000,
      });
      await scene.database.query(of.allow);
      await until(async () => (await left()).length === 0, { what: 'the row to be settled', withinMs: 40_000 });
      scene.expectIds(ids.map(({ id }) => id));
      expect(await admin.metric('waybill_outbox_refused')).toBe(0);
      expect(await relay.stop()).toBe(0);
    },
  );

  it('O4: more than two windows of rows that are refused, as they are removed or as they are set aside, leave room for others', async () => {
    await scene.database.query(`
      create function public.keep() returns trigger language plpgsql as
        $$ begin if old.type like 'bad%' then raise exception 'kept'; end if; return coalesce(new, old); end $$;
      create trigger keep before update or delete on waybill.outbox for each row execute function public.keep()`);
    const relay = scene.start({ env: { ...ADMIN_ON, WAYBILL_RELAY_MAX_IN_FLIGHT: '10' } });
    const admin = await adminOf(relay);
    await relay.waitForPhase('streaming');
    await scene.database.query(`insert into waybill.outbox (type, exchange)
      select 'bad.' || n, case when n % 2 = 0 then 'nowhere' end from generate_series(1, 60) n`);
    const ids = await scene.publish(100);
    await until(() => new Set(scene.probe.ids()).size === 130, { what: 'all that can go out' });
    await until(async () => (await scene.database.query('select from waybill.outbox')).length === 60, {
      what: 'the good rows to be settled',
    });
    const arrived = new Set(scene.probe.ids());
    expect(ids.filter((id) => !arrived.has(id))).toEqual([]);
    expect(await admin.metric('waybill_outbox_refused')).toBe(60);
    expect(relay.log.filter(({ msg }) => msg.includes('session ended'))).toEqual([]);
    expect(await relay.stop()).toBe(1);
  });

  it.each([
    ['raises', `raise exception 'rows are immutable' using errcode = 'IM001'`, 'IM001'],
    ['returns NULL', 'return null', null],
  ])(
    'rows that a trigger that %s does not let the relay set aside: told, the others go on, and a stop does not wait for them',
    async (_, does, sqlState) => {
      await scene.database.query(`
      create function waybill.immutable() returns trigger language plpgsql as
        $$ begin if new.type = 'bad' then ${does}; end if; return new; end $$;
      create trigger immutable before update on waybill.outbox for each row execute function waybill.immutable()`);
      const relay = scene.start({ env: ADMIN_ON });
      const admin = await adminOf(relay);
      await relay.waitForPhase('streaming');
      await scene.database.query(
        "insert into waybill.outbox (type, payload, exchange) values ('bad', '{}', 'nowhere')",
      );
      const line = await relay.waitForLog((each) => each['sqlState'] !== undefined, 'word of the trigger');
      expect(line).toMatchObject({ sqlState, trigger: 'immutable on waybill.outbox' });
      const ids = await scene.publish(100);
      await scene.probe.waitForDistinct(100);
      await until(async () => (await scene.database.query('select from waybill.outbox')).length === 1, {
        what: 'all others to be settled',
      });
      scene.expectIds(ids);
      expect(await admin.metric('waybill_outbox_refused')).toBe(1);
      expect(relay.log.filter((line) => line.msg.includes('session ended'))).toEqual([]);
      const atMs = performance.now();
      // Something is left in flight, and it says so.
      expect(await relay.stop()).toBe(1);
      expect(performance.now() - atMs).toBeLessThan(10_000);
      expect(relay.log.some((line) => line.msg.startsWith('rows are left') && line['refused'] === 1)).toBe(true);
    },
  );

  it('O4: a trigger for each statement that refuses every settle: no session ends, no copies, two windows, not ready, and it is named; all is well without it', async () => {
    await scene.database.query(`
      create sequence public.statements;
      create function public.frozen() returns trigger language plpgsql as
        $$ begin perform nextval('public.statements'); raise exception 'frozen'; end $$;
      create trigger frozen before delete on waybill.outbox for each statement execute function public.frozen()`);
    const relay = scene.start({
      env: { ...ADMIN_ON, WAYBILL_RELAY_MAX_IN_FLIGHT: '20', WAYBILL_ADMIN_STALE_AFTER: '2s' },
    });
    const admin = await adminOf(relay);
    await relay.waitForPhase('streaming');
    const ids = await scene.publish(ROWS);
    const stuck = async (): Promise<string | false> => {
      const { ready, parts } = await admin.ready();
      const reason = parts[0]?.reason ?? '';
      return (
        !ready && reason.includes('trigger frozen on waybill.outbox of your own refuses every such statement') && reason
      );
    };
    await until(stuck, { what: 'a relay that says why it is not ready', withinMs: 30_000 });
    const line = relay.log.find((each) => each['sqlState'] === 'P0001');
    expect(line).toMatchObject({ level: 'error', trigger: 'frozen on waybill.outbox' });
    const [problem] = (await problems(admin)).filter(({ id }) => id === 'refused-rows');
    expect(problem?.problem).toContain('trigger frozen on waybill.outbox of your own refuses every such statement');
    const before = await tried();
    const atMs = performance.now();
    await until(() => performance.now() - atMs > 6_000, { what: 'six seconds' });
    expect(await tried()).toBeLessThan(before + 30);
    expect(relay.log.filter(({ msg }) => msg.includes('session ended'))).toEqual([]);
    expect(scene.probe.messages.length).toBeLessThanOrEqual(2 * 20 + 5);
    await scene.database.query('drop trigger frozen on waybill.outbox');
    await scene.settled();
    await until(async () => (await admin.ready()).ready, { what: 'a ready relay' });
    scene.expectIds(ids);
    expect(await relay.stop()).toBe(0);

    async function tried(): Promise<number> {
      return (
        (await scene.database.query<{ n: number }>('select last_value::int as n from public.statements'))[0]?.n ?? 0
      );
    }
  });

  it.each([
    ['a lock timeout', '55P03', 'lock table waybill.outbox_history in exclusive mode'],
    ['a deadlock', '40P01', 'update public.counter set n = 0'],
  ])(
    'F61: a settle that meets %s is tried again: no session ends, nothing is lost and nothing sent twice',
    async (_, code, lock) => {
      const [{ name } = { name: '' }] = await scene.database.query<{ name: string }>(
        'select current_database() as name',
      );
      // Before its lock timeout, and after the other has begun to wait, too: whoever looks first is the victim.
      await scene.database.query(`alter database "${name}" set deadlock_timeout = '700ms';
        create table public.counter (n int);
        insert into public.counter values (0);
        create function public.count_one() returns trigger language plpgsql as
          $$ begin update public.counter set n = n + 1; return old; end $$;
        create trigger count_one before delete on waybill.outbox for each row execute function public.count_one()`);
      const relay = scene.start({ env: { WAYBILL_RELAY_HISTORY: 'trace' } });
      await relay.waitForPhase('streaming');
      const other = await scene.database.connect();
      await other.query(`set deadlock_timeout = '1min'; begin; ${lock}`);
      const ids = await scene.publish(100);
      await scene.probe.waitForDistinct(100);
      let waiting: Promise<unknown> | undefined;
      if (code === '40P01') {
        // The settle holds the relay's row and waits for the counter; now the other waits for the relay's row.
        const waits = `select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`;
        await until(async () => (await scene.database.query(waits)).length > 0, {
          what: 'the settle to wait',
          everyMs: 1,
        });
        waiting = other.query('select from waybill.relay for update');
      }
      await relay.waitForLog(
        ({ msg, error }) => msg.includes('waits for a lock') && String(error).includes(code),
        code,
      );
      await waiting;
      expect(await scene.database.query('select from waybill.outbox')).toHaveLength(100);
      await other.query('commit');
      await other.end();
      await until(async () => (await scene.database.query('select from waybill.outbox')).length === 0, {
        what: 'the rows to be settled',
      });
      expect(await scene.database.query('select from waybill.outbox_history')).toHaveLength(100);
      scene.expectIds(ids);
      expect(relay.log.filter(({ msg }) => msg.includes('session ended'))).toEqual([]);
      expect(await relay.stop()).toBe(0);
    },
  );

  it.each([
    ['one session', 'for update', 1],
    ['two sessions', 'for share', 2],
  ])(
    '3.3 more than two windows of rows locked by %s: not ready, and it is said whose locks they are and how to end them',
    async (_, lock, sessions) => {
      const env = { ...ADMIN_ON, WAYBILL_RELAY_MAX_IN_FLIGHT: '10', WAYBILL_ADMIN_STALE_AFTER: '1s' };
      const first = scene.start({ env });
      await first.waitForPhase('streaming');
      expect(await first.stop()).toBe(0);
      const ids = await scene.publish(40);
      const pids: number[] = [];
      for (let n = 0; n < sessions; n += 1) {
        const client = await scene.database.connect();
        client.on('error', () => undefined);
        await client.query(`set application_name = 'nightly report'; begin; select from waybill.outbox ${lock}`);
        pids.push((await client.query<{ pid: number }>('select pg_backend_pid() as pid')).rows[0]?.pid ?? 0);
      }
      ids.push(...(await scene.publish(5)));
      const relay = scene.start({ env });
      const admin = await adminOf(relay);
      const stuck = async (): Promise<string | false> => {
        const { ready, parts } = await admin.ready();
        const reason = parts[0]?.reason ?? '';
        return !ready && reason.includes('locked by') && reason;
      };
      const reason = await until(stuck, { what: 'a relay that says who has locked rows', withinMs: 30_000 });
      expect(reason).toContain(`of the outbox are locked by ${pids.map((pid) => `server process ${pid}`).join(', ')}`);
      expect(reason).not.toContain('nightly');
      expect(new Set(scene.probe.ids()).size).toBeLessThan(40);
      expect(await admin.metric('waybill_outbox_locked')).toBeGreaterThanOrEqual(20);
      const line = await relay.waitForLog(({ msg }) => msg.includes('somebody else has locked them'), 'the complaint');
      expect(line['holders']).toMatchObject(pids.map((pid) => ({ pid, application: 'nightly report' })));
      for (const pid of pids) {
        const [problem] = await until(
          async () => {
            const found = (await problems(admin)).filter(({ id }) => id === 'locked-rows');
            return found[0]?.next.includes(String(pid)) === true && found;
          },
          { what: `a problem that names process ${pid}`, withinMs: 30_000 },
        );
        expect(problem?.problem).toContain('nightly report');
        expect(problem?.next).toBe(`psql -c "select pg_terminate_backend(${pid})"`);
        await scene.database.query(problem?.next.replace(/^psql -c "(.*)"$/, '$1') ?? '');
      }
      await scene.settled();
      scene.expectIds(ids);
      await until(async () => (await admin.ready()).ready, { what: 'a ready relay' });
      expect(await admin.metric('waybill_outbox_locked')).toBe(0);
      expect(await relay.stop()).toBe(0);
    },
  );
});
