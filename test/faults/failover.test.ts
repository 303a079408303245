import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { Finding } from '../../src/app/doctor-findings.js';
import { runProgram } from '../integration/built-program.js';
import { startFaultProxy, type FaultProxy } from '../support/fault-proxy.js';
import { killRelays, type RelayProcess } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import { withClient, type PostgresServer } from '../support/servers/postgres-server.js';
import { startPostgres, type PostgresOptions } from '../support/servers/postgres.js';
import { startStandby, type Standby, type StandbyOptions } from '../support/servers/standby.js';
import { until } from '../support/waiting.js';
import type { WireUnit } from '../support/wire/units.js';

/** A primary with a standby named `mirror` that streams, and a relay's scene on it. */
interface Pair {
  primary: PostgresServer;
  standby: Standby;
  scene: RelayScene;
  /** In front of the broker. */
  proxy: FaultProxy;
  /** A relay that knows both servers and goes to the broker through the proxy. */
  start(): RelayProcess;
  /** Does something in the scene's database on the standby. */
  onStandby<T>(work: (client: pg.Client) => Promise<T>): Promise<T>;
  /** What `waybill doctor` says under an id. */
  doctor(id: string): Promise<string[]>;
  /** kill -9 of the primary, then the promotion. */
  failOver(): Promise<void>;
  close(): Promise<void>;
}

const SLOT_MADE = 'made the replication slot';
const PASSED = 'table pass published the backlog';
const SLOT_GONE =
  'the server was promoted, and the replication slot is not there; pending rows are read from the table';
const FOLLOWED = 'the server was promoted, and the replication slot has followed';

async function startPair(version: PostgresOptions['version'] & string, options: StandbyOptions = {}): Promise<Pair> {
  const primary = await startPostgres({ own: true, version });
  await withClient(primary.url(), (client) => client.query("select pg_create_physical_replication_slot('mirror')"));
  const scene = await relayScene({ server: primary });
  const settings = { cluster_name: 'mirror', primary_slot_name: 'mirror', ...options.settings };
  const standby = await startStandby(primary, { version, settings });
  await until(
    () =>
      withClient(primary.url(), async (client) => {
        const streams = "select from pg_stat_replication where application_name = 'mirror' and state = 'streaming'";
        return (await client.query(streams)).rowCount === 1;
      }),
    { what: 'the standby to stream', withinMs: 30_000 },
  );
  const proxy = await startFaultProxy({ targetPort: Number(new URL(scene.vhost.url).port) });
  const databaseUrl = scene.database.url.replace(/@[^/]+/, `@127.0.0.1:${primary.port},127.0.0.1:${standby.port}`);
  const brokerUrl = proxy.url(scene.vhost.url);
  return {
    ...{ primary, standby, scene, proxy },
    start: () => scene.start({ databaseUrl, brokerUrl }),
    onStandby: (work) => withClient(standby.url(scene.database.name), work),
    async doctor(id) {
      const environment = { WAYBILL_DATABASE_URL: databaseUrl, WAYBILL_BROKER_URL: scene.vhost.url };
      const { findings } = JSON.parse((await runProgram(['doctor', '--json'], environment)).out) as {
        findings: Finding[];
      };
      return findings.filter((each) => each.id === id).map(({ severity, finding }) => `${severity}: ${finding}`);
    },
    async failOver() {
      await primary.kill9();
      await standby.promote();
    },
    async close() {
      await scene.probe.close();
      await Promise.all([scene.vhost.drop(), standby.close(), primary.close(), proxy.close()]);
    },
  };
}

/** The body of a row's message, and not of a probe of the relay's own. */
const isRow = ({ names, body }: WireUnit): boolean => names.includes('amqp.client.body') && body.includes('"n"');

/** Sets something on the primary and waits until new sessions have it. */
async function set(pair: Pair, name: string, value: string): Promise<void> {
  await pair.scene.database.query(`alter system set ${name} = '${value}'`);
  await pair.scene.database.query('select pg_reload_conf()');
  await until(
    () =>
      withClient(pair.primary.url(), async (client) => {
        const { rows } = await client.query<{ v: string }>('select current_setting($1) as v', [name]);
        return rows[0]?.v === value;
      }),
    { what: `${name} to be ${value}` },
  );
}

/** Commits rows of one key one by one until the server is gone; what was answered is what an application relies on. */
async function writeUntilGone(url: string, key: string, answered: string[]): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  client.on('error', () => undefined);
  await client.connect();
  try {
    for (let n = 0; ; n += 1) {
      const sql = "select waybill.publish('order.paid', json_build_object('n', $1::int), key => $2) as id";
      const { rows } = await client.query<{ id: string }>(sql, [n, key]);
      answered.push(rows[0]!.id);
    }
  } catch {
    // The server was killed: whether the last one was committed nobody knows.
  }
}

/** Waits until the relay streams after the line with this number in its log. */
const streamsAfter = (relay: RelayProcess, lines: number) =>
  relay.waitForLog(
    (line) => relay.log.indexOf(line) >= lines && line['phase'] === 'streaming',
    'the relay to stream from the new primary',
    60_000,
  );

const logged = (relay: RelayProcess, lines: number, msg: string) =>
  relay.log.slice(lines).filter((line) => line.msg === msg);

const settledThere = (pair: Pair) =>
  until(
    () =>
      pair.onStandby(async (client) => {
        const { rowCount } = await client.query("select from waybill.outbox where state = 'ready' limit 1");
        return rowCount === 0;
      }),
    { what: 'the outbox of the new primary to be empty', withinMs: 30_000 },
  );

const timelineThere = (pair: Pair) =>
  pair.onStandby(
    async (client) => (await client.query<{ timeline: number }>('select timeline from waybill.relay')).rows,
  );

let pair: Pair;

afterEach(killRelays);

describe('a synchronous standby is promoted', () => {
  beforeAll(async () => {
    pair = await startPair('installed');
    await set(pair, 'synchronous_standby_names', 'mirror');
    await until(
      async () =>
        (await pair.scene.database.query("select from pg_stat_replication where sync_state = 'sync'")).length === 1,
      { what: 'the standby to be synchronous' },
    );
  });
  afterAll(() => pair.close());

  it('F23, 3.4: what was answered as committed arrives, also what was under way; order by key is kept, nobody is needed', async () => {
    const { scene, proxy } = pair;
    expect(await pair.doctor('standbys')).toEqual(['ok: a standby is synchronous']);
    const relay = pair.start();
    await relay.waitForPhase('streaming');
    const done = await scene.publish(20);
    await scene.settled();
    // From here on everything is sent and nothing confirmed: it is pending on both servers.
    const stalled = proxy.at('amqp.server.basic.ack', 1, 'stall-before', { scope: 'all' });
    const keys = ['a', 'b', 'c', 'd'];
    const answered = new Map(keys.map((key) => [key, [] as string[]]));
    const writers = keys.map((key) => writeUntilGone(scene.database.url, key, answered.get(key)!));
    await stalled;
    await until(() => keys.every((key) => answered.get(key)!.length >= 50), {
      what: '50 commits of each writer',
      withinMs: 60_000,
    });
    const lines = relay.log.length;
    await pair.failOver();
    await Promise.all(writers);
    // Of the same keys, and there before the relay is: they must not overtake.
    const later = await pair.onStandby(async (client) => {
      const sql =
        "select waybill.publish('order.paid', json_build_object('n', n), key => $1) as id from generate_series(1, 20) n";
      const ids = new Map<string, string[]>();
      for (const key of keys)
        ids.set(
          key,
          (await client.query<{ id: string }>(sql, [key])).rows.map(({ id }) => id),
        );
      return ids;
    });
    proxy.resume();
    await streamsAfter(relay, lines);
    const committed = [...answered.values()].flat();
    const late = [...later.values()].flat();
    await until(() => [...committed, ...late].every((id) => scene.probe.ids().includes(id)), {
      what: 'every row that was answered as committed',
      withinMs: 30_000,
    });
    await settledThere(pair);
    // Of each writer one more may have been committed without an answer.
    const known = new Set([...done, ...committed, ...late]);
    expect(scene.probe.firstIds().filter((id) => !known.has(id ?? '')).length).toBeLessThanOrEqual(keys.length);
    for (const key of keys) {
      const mine = [...answered.get(key)!, ...later.get(key)!];
      expect(scene.probe.firstIds().filter((id) => mine.includes(id ?? ''))).toEqual(mine);
    }
    // What was settled before is settled there, too: it does not go out again.
    expect(scene.probe.ids().filter((id) => done.includes(id ?? ''))).toEqual(done);
    expect(logged(relay, lines, SLOT_MADE)).toHaveLength(1);
    expect(logged(relay, lines, PASSED)).toHaveLength(1);
    expect(logged(relay, lines, SLOT_GONE)).toMatchObject([{ level: 'error', fromTimeline: 1, timeline: 2 }]);
    expect(await timelineThere(pair)).toEqual([{ timeline: 2 }]);
    expect(await relay.stop()).toBe(0);
  });
});

describe('an asynchronous standby is promoted', () => {
  beforeAll(async () => {
    pair = await startPair('installed');
  });
  afterAll(() => pair.close());

  it('F24, fact 57: only what it did not have is gone; sent rows of it stay phantoms, and their numbers, given out again, go out', async () => {
    const { scene, proxy, standby } = pair;
    expect(await pair.doctor('standbys')).toEqual([expect.stringContaining('warn: the standbys are asynchronous')]);
    const relay = pair.start();
    await relay.waitForPhase('streaming');
    const done = await scene.publish(20);
    await scene.settled();
    proxy.refuse(true);
    proxy.cut();
    await relay.waitForPhase('connecting');
    const pending = await scene.publish(20);
    await standby.caughtUp();
    await standby.detach();
    // Only the primary has these; 30 of them go out with the 20 before them, and the others never.
    const client = await scene.database.connect();
    await client.query('begin');
    const gone = await scene.publish(200, { client });
    const numbersOf = async (from: pg.Client, ids: string[]): Promise<string[]> =>
      (await from.query<{ seq: string }>('select seq from waybill.outbox where id = any($1)', [ids])).rows.map(
        ({ seq }) => seq,
      );
    const sentNumbers = await numbersOf(client, gone.slice(0, 30));
    await client.query('commit');
    const stalled = proxy.at(isRow, 50, 'stall-after', { scope: 'all' });
    proxy.refuse(false);
    await stalled;
    await scene.probe.waitFor(70);
    const lines = relay.log.length;
    await pair.failOver();
    const [late, lateNumbers] = await pair.onStandby(async (there) => {
      await there.query('begin');
      const ids = await scene.publish(250, { client: there });
      const numbers = await numbersOf(there, ids);
      await there.query('commit');
      return [ids, numbers] as const;
    });
    // Else this test shows nothing: a number that is in flight belongs to another row now.
    expect(lateNumbers.filter((seq) => sentNumbers.includes(seq)).length).toBeGreaterThan(0);
    // What the proxy holds goes with the connections.
    proxy.cut();
    proxy.resume();
    await streamsAfter(relay, lines);
    await until(() => late.every((id) => scene.probe.ids().includes(id)), {
      what: 'the rows of the new primary',
      withinMs: 30_000,
    });
    await settledThere(pair);
    // Exactly these, and second copies of what was sent, but not settled, when the primary died.
    scene.expectIds([...done, ...pending, ...gone.slice(0, 30), ...late], { copies: pending.length });
    expect(scene.probe.ids().filter((id) => pending.includes(id ?? ''))).toEqual([...pending, ...pending]);
    expect(logged(relay, lines, PASSED)).toHaveLength(1);
    expect(logged(relay, lines, SLOT_GONE)).toMatchObject([{ level: 'error', fromTimeline: 1, timeline: 2 }]);
    expect(await timelineThere(pair)).toEqual([{ timeline: 2 }]);
    expect(await relay.stop()).toBe(0);
  });
});

describe('PostgreSQL 17 and later: the slot follows to the standby', () => {
  beforeAll(async () => {
    pair = await startPair('embedded', {
      settings: { sync_replication_slots: 'on', hot_standby_feedback: 'on' },
    });
  });
  afterAll(() => pair.close());

  it('F25, F24, 3.8: the relay goes on from the synchronised slot, without a table pass, and nothing is out that the standby never had', async () => {
    const { scene, proxy, standby } = pair;
    const relay = pair.start();
    await relay.waitForPhase('streaming');
    expect(await pair.doctor('slot-failover')).toEqual([expect.stringContaining('warn: synchronized_standby_slots')]);
    await set(pair, 'synchronized_standby_slots', 'mirror');
    expect(await pair.doctor('slot-failover')).toEqual([expect.stringContaining('ok: ')]);
    const done: string[] = [];
    await until(
      async () => {
        // The slot is kept there only once it has moved past what the standby's own copy can begin with.
        done.push(...(await scene.publish(1)));
        await scene.settled();
        return pair.onStandby(async (client) => {
          const sql =
            'select from pg_replication_slots where slot_name = $1 and failover and synced and not temporary and invalidation_reason is null';
          return (await client.query(sql, [(await scene.slot())?.name])).rowCount === 1;
        });
      },
      { what: 'the slot to be synchronised', withinMs: 90_000, everyMs: 250 },
    );
    const stalled = proxy.at(isRow, 30, 'stall-after', { scope: 'all' });
    const pending = await scene.publish(30);
    await stalled;
    await scene.probe.waitForDistinct(done.length + 30);
    await standby.caughtUp();
    await standby.detach();
    const gone = await scene.publish(10);
    await until(
      async () =>
        (
          await scene.database.query(
            "select from pg_stat_activity where application_name like 'waybill % stream' and wait_event = 'WaitForStandbyConfirmation'",
          )
        ).length === 1,
      { what: 'the log to be held back until the standby has it', withinMs: 30_000 },
    );
    // The relay is free to send, and would send them if it had them.
    proxy.resume();
    await until(
      async () => (await scene.database.query('select from waybill.outbox where id = any($1)', [pending])).length === 0,
      { what: 'the rows before them to be settled', withinMs: 30_000 },
    );
    const lines = relay.log.length;
    await pair.failOver();
    await streamsAfter(relay, lines);
    const late = await pair.onStandby((client) => scene.publish(50, { client }));
    await until(() => [...pending, ...late].every((id) => scene.probe.ids().includes(id)), {
      what: 'the rows that the new primary has',
      withinMs: 30_000,
    });
    await settledThere(pair);
    expect(scene.probe.ids().filter((id) => gone.includes(id ?? ''))).toEqual([]);
    scene.expectIds([...done, ...pending, ...late], { copies: pending.length });
    expect(scene.probe.firstIds()).toEqual([...done, ...pending, ...late]);
    expect([...logged(relay, lines, SLOT_MADE), ...logged(relay, lines, PASSED)]).toEqual([]);
    expect(logged(relay, lines, FOLLOWED)).toMatchObject([{ level: 'warn', fromTimeline: 1, timeline: 2 }]);
    expect(await timelineThere(pair)).toEqual([{ timeline: 2 }]);
    expect(await relay.stop()).toBe(0);
  });
});
