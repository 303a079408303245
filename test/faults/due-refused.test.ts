import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { Status } from '../../src/app/status.js';
import { buildProgram, runProgram } from '../integration/built-program.js';
import { ADMIN_ON, adminOf, type Admin } from '../support/admin.js';
import { killRelays, type LogLine, type RelayProcess } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import { until } from '../support/waiting.js';

const DUE = `update waybill.outbox set next_attempt_at = clock_timestamp() where state = 'scheduled'`;

/** What of the user's own refuses to let a row of each type go, and what is told of it. */
const REFUSALS = {
  checked: { sqlState: '23514', constraint: 'no_checked' },
  raised: { sqlState: 'P0001', trigger: 'keep on waybill.outbox' },
  foreign: { sqlState: '23503', constraint: 'pairs' },
  silent: { sqlState: null, trigger: 'keep on waybill.outbox' },
};
const REFUSE = `
  alter table waybill.outbox add constraint no_checked check (type <> 'checked') not valid;
  create table public.pairs (type text, state text, primary key (type, state));
  insert into public.pairs select type, state from unnest(array['good', 'checked', 'raised', 'foreign', 'silent']) type,
    unnest(array['scheduled', 'ready']) state where not (type = 'foreign' and state = 'ready');
  alter table waybill.outbox add constraint pairs foreign key (type, state) references public.pairs (type, state);
  create function public.keep() returns trigger language plpgsql as $$ begin
    if old.type = 'raised' then raise exception 'kept'; end if;
    if old.type = 'silent' then return null; end if;
    return new;
  end $$;
  create trigger keep before update on waybill.outbox for each row execute function public.keep()`;
const ALLOW = `alter table waybill.outbox drop constraint no_checked, drop constraint pairs;
  drop trigger keep on waybill.outbox`;
/** Only rows of type `bad` are refused, by a check that came later. */
const NO_BAD = `alter table waybill.outbox add constraint no_bad check (type <> 'bad') not valid`;
const BAD = 'alter table waybill.outbox drop constraint no_bad';
const STRICT = { WAYBILL_RELAY_ORDERING: 'strict' };

describe('rows that wait in the table, and one that is refused', () => {
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

  const ended = (relay: RelayProcess): unknown[] => relay.log.filter(({ msg }) => msg.includes('session ended'));

  /** Rows that wait for their time, in the table and in the relay's eyes. */
  async function scheduled(...rows: (readonly [type: string, n: number])[]): Promise<string[]> {
    const ids: string[] = [];
    for (const [type, n] of rows) {
      const inserted = await scene.database.query<{ id: string }>(
        `insert into waybill.outbox (type, payload, deliver_at)
         select $1, '{}', now() + interval '1 hour' from generate_series(1, $2::int) returning id`,
        [type, n],
      );
      ids.push(...inserted.map(({ id }) => id));
    }
    const [{ n } = { n: -1 }] = await until(
      async () => {
        const counts = await scene.database.query<{ n: number; ready: number }>(
          `select count(*)::int as n, (count(*) filter (where state = 'ready'))::int as ready from waybill.outbox`,
        );
        return counts[0]?.ready === 0 && counts;
      },
      { what: 'the rows to wait', withinMs: 120_000, everyMs: 100 },
    );
    expect(n).toBe(ids.length);
    return ids;
  }

  const left = (): Promise<{ type: string; state: string }[]> =>
    scene.database.query('select type, state from waybill.outbox order by seq');

  const told = (relay: RelayProcess): LogLine[] => relay.log.filter((line) => line['sqlState'] !== undefined);

  it('3.6: rows that are due and refused, by a check, a trigger, a foreign key or silently: told, all others go out; they go by themselves once they may', async () => {
    const relay = scene.start({ env: ADMIN_ON });
    const admin = await adminOf(relay);
    await relay.waitForPhase('streaming');
    const types = Object.keys(REFUSALS);
    const ids = await scheduled(...types.flatMap((type) => [['good', 20] as const, [type, 1] as const]), ['good', 20]);
    await scene.database.query(`${DUE}; ${REFUSE}`);
    await scene.probe.waitForDistinct(100);
    await until(() => told(relay).length === 4, { what: 'word of each refusal' });
    for (const [type, refusal] of Object.entries(REFUSALS)) {
      const line = told(relay).find((each) => each['type'] === type);
      expect(line).toMatchObject({ ...refusal, level: 'error', messageId: ids[20 + 21 * types.indexOf(type)] });
    }
    await until(async () => (await left()).length === 4, { what: 'the others to be settled' });
    expect(await left()).toEqual(types.map((type) => ({ type, state: 'scheduled' })));
    expect(await admin.metric('waybill_outbox_refused')).toBe(4);
    expect(await admin.ready()).toMatchObject({ ready: true, parts: [{ detail: { refusedRows: 4 } }] });
    const [problem] = (await problems(admin)).filter(({ id }) => id === 'refused-rows');
    expect(problem?.problem).toMatch(/^4 rows cannot be let go: .* of your own re(fuses|turns NULL for) it/);
    await scene.database.query(ALLOW);
    await until(async () => (await left()).length === 0, { what: 'the rows to go', withinMs: 45_000 });
    scene.expectIds(ids);
    expect(await admin.metric('waybill_outbox_refused')).toBe(0);
    expect([told(relay).length, ended(relay)]).toEqual([4, []]);
    expect(await relay.stop()).toBe(0);
  });

  it('3.6: 100,000 rows due at one moment, three of them refused: found by few statements, and nothing spins', async () => {
    // What a sequence gives is not taken back with the statement.
    await scene.database.query(`
      create sequence public.statements;
      create function public.count_statement() returns trigger language plpgsql as
        $$ begin perform nextval('public.statements'); return null; end $$;
      create trigger counted before update on waybill.outbox for each statement execute function public.count_statement();
      insert into waybill.outbox (type, payload, state, next_attempt_at)
        select case when n in (1, 50000, 99999) then 'bad' else 'good' end, '{}', 'scheduled', now()
        from generate_series(1, 100000) n;
      ${NO_BAD}`);
    const relay = scene.start({ env: { WAYBILL_RELAY_HISTORY: 'off' } });
    await scene.probe.waitForDistinct(99_997, 120_000);
    await until(async () => (await left()).length === 3, { what: 'the others to be settled', withinMs: 30_000 });
    const statements = async (): Promise<number> =>
      (await scene.database.query<{ n: number }>('select last_value::int as n from public.statements'))[0]?.n ?? 0;
    await until(() => told(relay).length === 3, { what: 'word of each' });
    const before = await statements();
    expect(before).toBeLessThan(200 + 3 * 25);
    // Three rounds, each of which would begin anew if it knew nothing.
    const beganAtMs = performance.now();
    await until(() => performance.now() - beganAtMs > 3_000, { what: 'three seconds' });
    expect(await statements()).toBe(before);
    expect(ended(relay)).toEqual([]);
    expect(await relay.stop()).toBe(0);
  }, 200_000);

  it('3.5: a held row that is refused when its turn comes keeps its key in order, and no other key', async () => {
    const relay = scene.start({ env: { ...STRICT, ...ADMIN_ON } });
    const admin = await adminOf(relay);
    await relay.waitForPhase('streaming');
    const insert = async (type: string, key: string, exchange: string | null, n = 1): Promise<string[]> =>
      (
        await scene.database.query<{ id: string }>(
          `insert into waybill.outbox (type, key, exchange, payload)
           select $1, $2, $3, '{}' from generate_series(1, $4::int) returning id`,
          [type, key, exchange, n],
        )
      ).map(({ id }) => id);
    const heads = (await Promise.all(['a', 'b', 'e'].map((key) => insert('good', key, 'nowhere')))).flat();
    await until(
      async () => (await scene.database.query("select from waybill.outbox where state = 'parked'")).length === 3,
      { what: 'the heads to be parked' },
    );
    const b = await insert('good', 'b', null, 5);
    const a = [
      ...(await insert('good', 'a', null, 3)),
      ...(await insert('bad', 'a', null)),
      ...(await insert('good', 'a', null, 3)),
    ];
    const e = [
      ...(await insert('good', 'e', null, 2)),
      ...(await insert('silent', 'e', null)),
      ...(await insert('good', 'e', null, 2)),
    ];
    const blocked = async (): Promise<number> =>
      (await scene.database.query("select from waybill.outbox where state = 'blocked'")).length;
    await until(async () => (await blocked()) === 17, { what: 'the others to be held behind them' });
    await scene.database.query(`${NO_BAD};
      create function public.keep() returns trigger language plpgsql as
        $$ begin if old.type = 'silent' then return null; end if; return new; end $$;
      create trigger keep before update on waybill.outbox for each row execute function public.keep()`);
    await scene.database.query(`select waybill.discard(id, 'test') from unnest($1::uuid[]) id`, [heads]);
    await scene.probe.waitForDistinct(10, 30_000);
    await until(() => told(relay).length === 2, { what: 'word of the refusals' });
    const [first, second] = ['a', 'e'].map((key) => told(relay).find((line) => line['key'] === key));
    expect(first).toMatchObject({ sqlState: '23514', constraint: 'no_bad', messageId: a[3] });
    expect(second).toMatchObject({ sqlState: null, trigger: 'keep on waybill.outbox', messageId: e[2] });
    const c = await insert('good', 'c', null, 50);
    a.push(...(await insert('good', 'a', null)));
    await scene.probe.waitForDistinct(60);
    const isHeld = `select from waybill.outbox where id = '${a.at(-1) ?? ''}' and state = 'blocked'`;
    await until(async () => (await scene.database.query(isHeld)).length === 1, { what: 'the last one to be held' });
    const of = (ids: readonly string[]): (string | undefined)[] =>
      scene.probe.ids().filter((id) => id !== undefined && ids.includes(id));
    expect([of(a), of(b), of(c), of(e)]).toEqual([a.slice(0, 3), b, c, e.slice(0, 2)]);
    expect(await admin.metric('waybill_outbox_refused')).toBe(2);
    // Also over a restart: a row that had been let go before it is put back, but for one that is refused.
    expect(await relay.stop()).toBe(0);
    await scene.database.query(`${BAD}; update waybill.outbox set state = 'ready' where type = 'bad'; ${NO_BAD}`);
    const again = scene.start({ env: STRICT });
    await again.waitForPhase('streaming');
    await until(() => told(again).length === 2, { what: 'word of the refusals at the start' });
    const more = await insert('good', 'c', null, 10);
    await scene.probe.waitForDistinct(70);
    expect([of(a), of(e)]).toEqual([a.slice(0, 3), e.slice(0, 2)]);
    await scene.database.query(`${BAD}; drop trigger keep on waybill.outbox`);
    await scene.probe.waitForDistinct(78, 45_000);
    expect([of(a), of(e)]).toEqual([a, e]);
    scene.expectIds([...a, ...b, ...c, ...e, ...more]);
    expect([ended(relay), ended(again)]).toEqual([[], []]);
    expect(await again.stop()).toBe(0);
  });

  it('3.5: back to pipelined: rows that strict order held are freed, but for one that is refused', async () => {
    await scene.database.query(`
      insert into waybill.outbox (type, key, payload, state, hold_no)
        select case when n = 5 then 'bad' else 'good' end, 'k', '{}', 'blocked', nextval('waybill.outbox_hold_no')
        from generate_series(1, 20) n;
      ${NO_BAD}`);
    const relay = scene.start();
    await relay.waitForPhase('streaming');
    await scene.probe.waitForDistinct(19);
    await until(async () => (await left()).length === 1, { what: 'the others to be settled' });
    expect(await left()).toEqual([{ type: 'bad', state: 'blocked' }]);
    expect(told(relay)).toMatchObject([{ constraint: 'no_bad', key: 'k' }]);
    await scene.database.query(BAD);
    await until(async () => (await left()).length === 0, { what: 'the row to go', withinMs: 45_000 });
    expect(ended(relay)).toEqual([]);
    expect(await relay.stop()).toBe(0);
  });

  it('a trigger for each statement that raises: the session goes on, the trigger is named, nothing spins', async () => {
    const relay = scene.start({ env: ADMIN_ON });
    const admin = await adminOf(relay);
    await relay.waitForPhase('streaming');
    const ids = await scheduled(['good', 10]);
    await scene.database.query(`${DUE};
      create function public.frozen() returns trigger language plpgsql as $$ begin raise exception 'frozen'; end $$;
      create trigger frozen before update on waybill.outbox for each statement execute function public.frozen()`);
    const line = await relay.waitForLog((each) => each['sqlState'] === 'P0001', 'word of the trigger');
    expect(line).toMatchObject({ level: 'error', trigger: 'frozen on waybill.outbox' });
    ids.push(...(await scene.publish(20)));
    await scene.probe.waitForDistinct(20);
    const [problem] = (await problems(admin)).filter(({ id }) => id === 'refused-rows');
    expect(problem?.problem).toContain('trigger frozen on waybill.outbox of your own refuses every such statement');
    await scene.database.query('drop trigger frozen on waybill.outbox');
    await until(async () => (await left()).length === 0, { what: 'the rows to go', withinMs: 45_000 });
    scene.expectIds(ids);
    expect([told(relay).length, ended(relay)]).toEqual([1, []]);
    expect(await relay.stop()).toBe(0);
  });
});
