import { randomUUID } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { startBrokerProbe, type ProbedMessage } from '../support/broker-probe.js';
import { EXCHANGE, outboxStage, type OutboxStage } from '../support/outbox-stage.js';
import { killRelays, startRelay, type RelayProcess } from '../support/relay.js';
import { until } from '../support/waiting.js';

type Ordering = 'strict' | 'pipelined';

describe('ordering', () => {
  let stage: OutboxStage;
  let relay: RelayProcess;
  let written: Map<string, string[]>;

  beforeEach(() => {
    written = new Map();
  });
  afterEach(async () => {
    await killRelays();
    await stage.drop();
  });

  let queueArgs: Record<string, unknown> | undefined;
  async function begin(ordering: Ordering, queueArguments?: Record<string, unknown>): Promise<void> {
    queueArgs = queueArguments;
    stage = await outboxStage(queueArguments ? { queueArguments } : {});
    await start(ordering);
  }
  async function start(ordering: Ordering, env: Record<string, string> = {}): Promise<void> {
    relay = startRelay({
      databaseUrl: stage.database.url,
      brokerUrl: stage.vhost.url,
      env: { WAYBILL_RELAY_ORDERING: ordering, ...env },
    });
    await relay.waitForPhase('streaming');
  }

  /** Commits n rows of each key, one transaction a round, and notes their order. */
  async function write(keys: readonly string[], n: number, columns: { type?: string; exchange?: string } = {}) {
    const { type = 'order.paid', exchange = null } = columns;
    for (let round = 0; round < n; round += 1) {
      const ids = keys.map(() => randomUUID());
      await stage.database.query(
        `insert into waybill.outbox (id, key, type, exchange, payload)
         select i.id, i.key, $3, $4, '{}' from unnest($1::uuid[], $2::text[]) as i (id, key)`,
        [ids, keys, type, exchange],
      );
      for (const [at, key] of keys.entries()) written.set(key, [...(written.get(key) ?? []), ids[at] ?? '']);
    }
  }

  /** Ids of first copies by key, in the order of their arrival. */
  function firstCopies(messages: readonly ProbedMessage[]): Map<string, string[]> {
    const keyOf = new Map([...written].flatMap(([key, ids]) => ids.map((id) => [id, key] as const)));
    const arrived = new Map<string, string[]>();
    for (const id of new Set(messages.map((each) => each.id ?? ''))) {
      const key = keyOf.get(id) ?? 'phantom';
      arrived.set(key, [...(arrived.get(key) ?? []), id]);
    }
    return arrived;
  }
  const states = async (key: string): Promise<string> =>
    (
      await stage.database.query<{ state: string }>('select state from waybill.outbox where key = $1 order by seq', [
        key,
      ])
    )
      .map((each) => each.state)
      .join(' ');
  const reached = (key: string, wanted: string): Promise<unknown> =>
    until(async () => (await states(key)) === wanted, { what: `the rows of ${key} to be ${wanted}`, withinMs: 30_000 });
  const act = async (what: 'retry' | 'discard', id: string | undefined): Promise<unknown> =>
    (await stage.database.query<{ answer: string }>(`select waybill.${what}($1, 'test') as answer`, [id]))[0]?.answer;

  it.each(['strict', 'pipelined'] as const)(
    'F75 F76 O5 a full queue nacks: %s delivers every row once the consumer is back, strict in the order of each key',
    async (ordering) => {
      await begin(ordering, { 'x-max-length': 5, 'x-overflow': 'reject-publish' });
      const keys = ['a', 'b', 'c', 'd'];
      await write(keys, 25);
      await until(async () => (await stage.pending('scheduled')) > 0, {
        what: 'nacked rows to wait',
        withinMs: 30_000,
      });
      if (ordering === 'strict') expect(await stage.pending('blocked')).toBeGreaterThan(0);
      else expect(await stage.pending('blocked')).toBe(0);
      const probe = await startBrokerProbe({ url: stage.vhost.url, queue: stage.queue, arguments: queueArgs ?? {} });
      await stage.emptied();
      const messages = await probe.waitFor(100, 30_000);
      await probe.close();
      expect(new Set(messages.map((each) => each.id)).size).toBe(100);
      if (ordering === 'strict') expect(firstCopies(messages)).toEqual(written);
      expect(await relay.stop()).toBe(0);
    },
  );

  it('F73 3.5 strict: an unroutable row holds its own key and nobody else, and its followers come after it', async () => {
    await begin('strict');
    await stage.broker(async (channel) => {
      await channel.unbindQueue(stage.queue, EXCHANGE, '#');
      await channel.bindQueue(stage.queue, EXCHANGE, 'order.paid');
    });
    await write(['held'], 1, { type: 'nobody.listens' });
    await write(['held', 'free'], 3);
    await reached('held', 'scheduled blocked blocked blocked');
    await reached('free', '');
    await stage.broker((channel) => channel.bindQueue(stage.queue, EXCHANGE, '#'));
    await stage.emptied();
    expect(firstCopies(await stage.taken())).toEqual(
      new Map([
        ['free', written.get('free')],
        ['held', written.get('held')],
      ]),
    );
    expect(await relay.stop()).toBe(0);
  });

  it('F72 3.5 strict: a parked row holds its key until it is discarded or retried, also across a kill', async () => {
    await begin('strict');
    await write(['a', 'b'], 1, { exchange: 'nowhere' });
    await write(['a', 'b', 'free'], 2);
    await reached('a', 'parked blocked blocked');
    await reached('b', 'parked blocked blocked');
    await reached('free', '');
    await relay.kill9();
    await start('strict');
    await write(['a', 'b'], 1);
    await reached('a', 'parked blocked blocked blocked');
    // The second row of a key cannot be hurried past the first.
    expect(await act('retry', written.get('a')?.[1])).toBe('blocked');
    expect(await act('discard', written.get('a')?.[0])).toBe('discarded');
    await until(async () => !(await states('a')).includes('blocked'), { what: 'a to be free', withinMs: 20_000 });
    await stage.broker(async (channel) => {
      await channel.assertExchange('nowhere', 'fanout', { durable: true });
      await channel.bindQueue(stage.queue, 'nowhere', '');
    });
    expect(await act('retry', written.get('b')?.[0])).toBe('scheduled');
    await stage.emptied();
    const arrived = firstCopies(await stage.taken());
    expect(arrived.get('a')).toEqual(written.get('a')?.slice(1));
    expect(arrived.get('b')).toEqual(written.get('b'));
    expect(await relay.stop()).toBe(0);
  });

  it('F72 pipelined: a parked row holds nobody', async () => {
    await begin('pipelined');
    await write(['a'], 1, { exchange: 'nowhere' });
    await write(['a'], 2);
    await reached('a', 'parked');
    expect(firstCopies(await stage.taken()).get('a')).toEqual(written.get('a')?.slice(1));
    expect(await relay.stop()).toBe(0);
  });

  it('3.5 strict: an operator who leaves a transaction open holds the key of his row, and no other', async () => {
    await begin('strict');
    await write(['a'], 1, { exchange: 'nowhere' });
    await write(['a'], 2);
    await reached('a', 'parked blocked blocked');
    const operator = await stage.database.connect();
    await operator.query('begin');
    await operator.query('select waybill.discard($1)', [written.get('a')?.[0]]);
    await write(['a', 'free'], 1);
    await reached('free', '');
    await reached('a', 'parked blocked blocked blocked');
    await operator.query('commit');
    await stage.emptied();
    expect(firstCopies(await stage.taken()).get('a')).toEqual(written.get('a')?.slice(1));
    expect(await relay.stop()).toBe(0);
  });

  /** An operator asks for a row to be retried that is not held yet, and leaves his transaction open: its key is locked, too. */
  async function lockFirst(key: string) {
    const operator = await stage.database.connect();
    await operator.query('begin');
    const answer = await operator.query<{ retry: string }>('select waybill.retry($1)', [written.get(key)?.[0]]);
    expect(answer.rows[0]?.retry).toBe('not held: ready');
    return operator;
  }
  /** Commits n rows of one key in one transaction. */
  async function writeMany(key: string, n: number): Promise<void> {
    const ids = Array.from({ length: n }, () => randomUUID());
    await stage.database.query(
      `insert into waybill.outbox (id, key, type, payload)
       select id, $2, 'order.paid', '{}' from unnest($1::uuid[]) with ordinality as i (id, n) order by n`,
      [ids, key],
    );
    written.set(key, [...(written.get(key) ?? []), ...ids]);
  }
  const count = async (key: string, state: string): Promise<number> =>
    (
      await stage.database.query<{ n: number }>(
        'select count(*)::int as n from waybill.outbox where key = $1 and state = $2',
        [key, state],
      )
    )[0]?.n ?? -1;
  /** Everything goes once the exchange of the first row of `key` is there. */
  async function mend(key: string): Promise<void> {
    await stage.broker(async (channel) => {
      await channel.assertExchange('nowhere', 'fanout', { durable: true });
      await channel.bindQueue(stage.queue, 'nowhere', '');
    });
    expect(await act('retry', written.get(key)?.[0])).toBe('scheduled');
    await stage.emptied();
    expect(firstCopies(await stage.taken())).toEqual(new Map([...written].sort()));
  }
  const SMALL = { WAYBILL_RELAY_MAX_IN_FLIGHT: '200' };

  it('F120 3.5 strict: a row that is to be held and stays locked stops nobody else, also over a kill, and keeps its place', async () => {
    await begin('strict');
    await relay.stop();
    await write(['a'], 1, { exchange: 'nowhere' });
    const operator = await lockFirst('a');
    await start('strict', SMALL);
    // More than twice two windows.
    await writeMany('a', 1_000);
    await write(['free'], 20);
    await reached('free', '');
    await until(async () => (await count('a', 'blocked')) === 1_000, { what: 'the key to wait', withinMs: 30_000 });
    await writeMany('a', 1_000);
    await relay.kill9();
    await start('strict', SMALL);
    await write(['free', 'other'], 20);
    await reached('free', '');
    await reached('other', '');
    await until(async () => (await count('a', 'blocked')) === 2_000, { what: 'the key to wait', withinMs: 30_000 });
    await relay.kill9();
    await start('strict', SMALL);
    await write(['free'], 20);
    await reached('free', '');
    await operator.query('rollback');
    await until(async () => (await count('a', 'parked')) === 1, {
      what: 'the first row to be parked',
      withinMs: 30_000,
    });
    await mend('a');
    expect(await relay.stop()).toBe(0);
  });

  it('F120 3.5 strict: a row that is to be held and stays locked is not passed by those behind it when one of them is discarded', async () => {
    await begin('strict');
    await relay.stop();
    await write(['a'], 1, { exchange: 'nowhere' });
    const person = await stage.database.connect();
    await person.query('begin');
    await person.query(`select from waybill.outbox where key = 'a' for update`);
    await start('strict');
    await write(['a'], 3);
    await reached('a', 'ready blocked blocked blocked');
    expect(await act('discard', written.get('a')?.[1])).toBe('discarded');
    written.get('a')?.splice(1, 1);
    // The next one was let go, and waits for its turn again.
    await reached('a', 'ready discarded blocked blocked');
    await relay.kill9();
    await start('strict');
    await write(['a', 'free'], 1);
    await reached('free', '');
    await reached('a', 'ready discarded blocked blocked blocked');
    await person.query('rollback');
    await until(async () => (await count('a', 'parked')) === 1, {
      what: 'the first row to be parked',
      withinMs: 30_000,
    });
    await mend('a');
    expect(await relay.stop()).toBe(0);
  });

  it('F120 3.4 3.5 strict with source: table: a row that is to be held and stays locked stops nobody else', async () => {
    stage = await outboxStage();
    const env = { ...SMALL, WAYBILL_RELAY_SOURCE: 'table' };
    await write(['a'], 1, { exchange: 'nowhere' });
    const operator = await lockFirst('a');
    await start('strict', env);
    await writeMany('a', 1_000);
    await write(['free'], 20);
    await reached('free', '');
    await relay.kill9();
    await start('strict', env);
    await write(['free', 'other'], 20);
    await reached('free', '');
    await reached('other', '');
    expect(await count('a', 'ready')).toBe(1_001);
    await operator.query('rollback');
    await until(async () => (await count('a', 'parked')) === 1, {
      what: 'the first row to be parked',
      withinMs: 30_000,
    });
    await mend('a');
    expect(await relay.stop()).toBe(0);
  });

  it('F120 3.4 3.5 strict: a row that is to be held and stays locked stops nobody else of a table pass', async () => {
    await begin('strict');
    await relay.stop();
    await write(['a'], 1, { exchange: 'nowhere' });
    await writeMany('a', 1_000);
    await write(['free'], 20);
    const operator = await lockFirst('a');
    // As if it had been killed in a table pass; making the slot would wait for the operator.
    await stage.database.query('update waybill.relay set checkpoint_lsn = null, pass_after_seq = 0');
    relay = startRelay({
      databaseUrl: stage.database.url,
      brokerUrl: stage.vhost.url,
      env: { WAYBILL_RELAY_ORDERING: 'strict', ...SMALL },
    });
    await reached('free', '');
    await write(['late'], 5);
    await operator.query('rollback');
    await relay.waitForPhase('streaming');
    await reached('late', '');
    await mend('a');
    expect(await relay.stop()).toBe(0);
  });

  it('F120 3.5 strict: a hot key starves nobody, and keeps its order through the table', async () => {
    await begin('strict');
    await relay.stop();
    const ids: string[] = Array.from({ length: 6_000 }, () => randomUUID());
    written.set('hot', ids);
    await stage.database.query(
      `insert into waybill.outbox (id, key, type, payload)
       select id, 'hot', 'order.paid', '{}' from unnest($1::uuid[]) with ordinality as i (id, n) order by n`,
      [ids],
    );
    await write(['cool'], 20);
    await start('strict', { WAYBILL_RELAY_MAX_IN_FLIGHT: '200' });
    await stage.emptied();
    const messages = await stage.taken();
    const arrived = firstCopies(messages);
    expect(arrived).toEqual(new Map([...written].sort()));
    const last = messages.findLastIndex((each) => each.id === written.get('cool')?.at(-1));
    const hotBefore = messages.slice(0, last).filter((each) => ids.includes(each.id ?? '')).length;
    expect(hotBefore).toBeLessThan(3_000);
    expect(await relay.stop()).toBe(0);
  });

  it('F2 F3 F68 strict: first copies keep their order through kills of the relay', async () => {
    await begin('strict', { 'x-queue-type': 'quorum' });
    const keys = Array.from({ length: 20 }, (_, n) => `key-${n}`);
    for (let kill = 0; kill < 4; kill += 1) {
      const load = write(keys, 60);
      await until(async () => (await stage.pending()) > 50, { what: 'a backlog', withinMs: 20_000 });
      await relay.kill9();
      await start('strict', { WAYBILL_RELAY_MAX_IN_FLIGHT: String(10 + kill * 50) });
      await load;
    }
    await stage.emptied();
    expect(firstCopies(await stage.taken())).toEqual(written);
    expect(await relay.stop()).toBe(0);
  });

  it('F54 3.5 strict: rows released together keep commit order, whatever order their seqs were drawn in', async () => {
    await begin('strict');
    await write(['a'], 1, { exchange: 'nowhere' });
    await write(['a'], 1);
    const ids = Array.from({ length: 6 }, () => randomUUID());
    const late = await stage.database.connect();
    for (const [early, later] of [ids.slice(0, 2), ids.slice(2, 4), ids.slice(4)]) {
      const insert = `insert into waybill.outbox (id, key, type, payload) values ($1, 'a', 'order.paid', '{}')`;
      await late.query('begin');
      await late.query(insert, [later]);
      await stage.database.query(insert, [early]);
      await late.query('commit');
    }
    written.set('a', [...(written.get('a') ?? []), ...ids]);
    const held = Array.from({ length: 7 }, () => 'blocked').join(' ');
    await reached('a', `parked ${held}`);
    expect(await act('discard', written.get('a')?.[0])).toBe('discarded');
    await stage.emptied();
    expect(firstCopies(await stage.taken()).get('a')).toEqual(written.get('a')?.slice(1));
    expect(await relay.stop()).toBe(0);
  });

  it('F120 3.5 strict: rows that their writer deleted at once are held by the thousand, and stop nobody else', async () => {
    await begin('strict');
    await write(['a'], 1, { exchange: 'nowhere' });
    await reached('a', 'parked');
    const ids = Array.from({ length: 2_000 }, () => randomUUID());
    const writer = await stage.database.connect();
    await writer.query('begin');
    await writer.query(
      `insert into waybill.outbox (id, key, type, payload)
       select id, 'a', 'order.paid', '{}' from unnest($1::uuid[]) with ordinality as i (id, n) order by n`,
      [ids],
    );
    await writer.query('delete from waybill.outbox where id = any($1::uuid[])', [ids]);
    await writer.query('commit');
    written.set('a', [...(written.get('a') ?? []), ...ids]);
    await until(async () => (await stage.pending('blocked')) === 2_000, {
      what: '2,000 blocked rows',
      withinMs: 40_000,
    });
    expect(await act('discard', written.get('a')?.[0])).toBe('discarded');
    await stage.emptied();
    expect(firstCopies(await stage.taken()).get('a')).toEqual(ids);
    expect(await relay.stop()).toBe(0);
  });

  it('3.5 back to pipelined: what strict order held is free', async () => {
    await begin('strict');
    await write(['a'], 1, { exchange: 'nowhere' });
    await write(['a'], 3);
    await reached('a', 'parked blocked blocked blocked');
    expect(await relay.stop()).toBe(0);
    await start('pipelined');
    await reached('a', 'parked');
    expect(firstCopies(await stage.taken()).get('a')).toEqual(written.get('a')?.slice(1));
    expect(await relay.stop()).toBe(0);
  });

  it('F120 3.5 back to pipelined while an operator leaves a transaction open: the others go, and what he gives back, too', async () => {
    await begin('strict');
    await write(['a', 'b'], 1, { exchange: 'nowhere' });
    await write(['a', 'b'], 2);
    await reached('a', 'parked blocked blocked');
    await reached('b', 'parked blocked blocked');
    expect(await relay.stop()).toBe(0);
    const operator = await stage.database.connect();
    await operator.query('begin');
    await operator.query('select waybill.discard($1)', [written.get('a')?.[0]]);
    await start('pipelined', { WAYBILL_RELAY_SWEEP_INTERVAL: '10s' });
    await write(['free'], 1);
    await reached('free', '');
    await reached('b', 'parked');
    await operator.query('rollback');
    await reached('a', 'parked');
    expect(await relay.stop()).toBe(0);
  });

  it('3.4 3.5 strict with source: table keeps the order of each key, and a parked row holds its key', async () => {
    stage = await outboxStage();
    await start('strict', { WAYBILL_RELAY_SOURCE: 'table' });
    await write(['a'], 1, { exchange: 'nowhere' });
    await write(['a', 'b', 'c'], 50);
    await until(async () => (await states('b')) === '' && (await states('c')) === '', {
      what: 'the free keys to go',
      withinMs: 30_000,
    });
    expect((await states('a')).startsWith('parked blocked')).toBe(true);
    expect(await act('discard', written.get('a')?.[0])).toBe('discarded');
    await stage.emptied();
    const arrived = firstCopies(await stage.taken());
    expect(arrived.get('a')).toEqual(written.get('a')?.slice(1));
    expect(arrived.get('b')).toEqual(written.get('b'));
    expect(arrived.get('c')).toEqual(written.get('c'));
    expect(await relay.stop()).toBe(0);
  });
});
