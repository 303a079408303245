import { randomUUID } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { outboxStage, type OutboxStage } from '../support/outbox-stage.js';
import { killRelays, startRelay, type RelayProcess } from '../support/relay.js';
import { until } from '../support/waiting.js';

describe('rows that are not to go out, or not yet, however the log brings them', () => {
  let stage: OutboxStage;

  beforeEach(async () => {
    stage = await outboxStage();
  });
  afterEach(async () => {
    await killRelays();
    await stage.drop();
  });

  const start = async (env: Record<string, string> = {}): Promise<RelayProcess> => {
    const relay = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url, env });
    await relay.waitForPhase('streaming');
    return relay;
  };
  const gone = (id: string | undefined) => async (): Promise<boolean> =>
    (await stage.database.query('select from waybill.outbox where id = $1', [id])).length === 0;
  const outcomes = async (ids: (string | undefined)[]): Promise<string[]> => {
    const rows = await stage.database.query<{ outcome: string }>(
      'select outcome from waybill.outbox_history h where id = any($1::uuid[]) order by array_position($1::uuid[], h.id)',
      [ids],
    );
    return rows.map(({ outcome }) => outcome);
  };
  /** Writes a row that is due in so many seconds, and gives its id. */
  const writeLater = async (seconds: number): Promise<string> => {
    const rows = await stage.database.query<{ id: string }>(
      `select waybill.publish('later', '1', deliver_at => clock_timestamp() + make_interval(secs => $1)) as id`,
      [seconds],
    );
    return rows[0]?.id ?? '';
  };
  const due = (id: string): Promise<true> =>
    until(
      async () =>
        (
          await stage.database.query('select from waybill.outbox where id = $1 and deliver_at < clock_timestamp()', [
            id,
          ])
        ).length === 1,
      { what: 'the row to be due' },
    );

  it.each(['pipelined', 'strict'])(
    'O3, %s order: a row that is written in another state than ready does what the state says',
    async (ordering) => {
      const relay = await start({ WAYBILL_RELAY_ORDERING: ordering, WAYBILL_RELAY_SWEEP_INTERVAL: '10s' });
      const id = {
        discarded: randomUUID(),
        cancelled: randomUUID(),
        parked: randomUUID(),
        due: randomUUID(),
        later: randomUUID(),
        blocked: randomUUID(),
      };
      // As a dump brings them that is restored.
      await stage.database.query(
        `insert into waybill.outbox (id, type, key, payload, state, next_attempt_at, hold_no, last_error) values
         ($1, 'x', 'a', '1', 'discarded', null, null, null), ($2, 'x', 'a', '2', 'cancelled', null, null, null),
         ($3, 'x', 'b', '3', 'parked', null, 7, 'unroutable'), ($4, 'x', 'c', '4', 'scheduled', now(), null, null),
         ($5, 'x', 'd', '5', 'scheduled', now() + interval '1 hour', null, null),
         ($6, 'x', 'e', '6', 'blocked', null, 7, null)`,
        Object.values(id),
      );
      const [behind] = await stage.write(1, { columns: { key: 'b' } });
      const [other] = await stage.write(1, { columns: { key: 'f' } });
      for (const each of [other?.id, id.due, id.blocked, id.discarded, id.cancelled]) {
        await until(gone(each), { what: `row ${each ?? ''} to leave the outbox`, withinMs: 30_000 });
      }
      // With strict order the parked row holds its key, as any other.
      if (ordering === 'pipelined') await until(gone(behind?.id), { what: 'the row behind the parked one to go' });
      const left = await stage.database.query('select id, state from waybill.outbox order by seq');
      expect(left).toEqual([
        { id: id.parked, state: 'parked' },
        { id: id.later, state: 'scheduled' },
        ...(ordering === 'strict' ? [{ id: behind?.id, state: 'blocked' }] : []),
      ]);
      expect(await outcomes(Object.values(id))).toEqual(['discarded', 'cancelled', 'published', 'published']);
      expect(await relay.stop()).toBe(0);
      const expected = [id.due, id.blocked, other?.id, ...(ordering === 'pipelined' ? [behind?.id] : [])];
      expect((await stage.taken()).map((message) => message.id).sort()).toEqual(expected.sort());
    },
    90_000,
  );

  it('3.6: a row that was written back as parked is not tried again when the log brings it from there', async () => {
    const relay = await start();
    const id = randomUUID();
    const client = await stage.database.connect();
    await client.query('begin');
    await client.query(`insert into waybill.outbox (id, type, payload, exchange) values ($1, 'x', '1', 'nowhere')`, [
      id,
    ]);
    await client.query('delete from waybill.outbox where id = $1', [id]);
    await client.query('commit');
    await until(async () => (await stage.pending('parked')) === 1, { what: 'the row to be parked' });
    const [marker] = await stage.write(1);
    await until(gone(marker?.id), { what: 'the row behind it to go' });
    expect(await relay.stop()).toBe(0);
    const told = relay.log.filter(({ messageId, result }) => messageId === id && result === 'parked');
    expect(told.map(({ attempt }) => attempt)).toEqual([1]);
  });

  it('3.6: cancel in a transaction that is open when its row is due holds the row back; rolled back, it goes out', async () => {
    await (await start()).stop();
    const [cancelled, kept] = [await writeLater(1), await writeLater(1)];
    const [committing, rolling] = [await stage.database.connect(), await stage.database.connect()];
    for (const [client, id] of [
      [committing, cancelled],
      [rolling, kept],
    ] as const) {
      await client.query('begin');
      expect((await client.query('select waybill.cancel($1) as done', [id])).rows).toEqual([{ done: true }]);
    }
    await due(cancelled);
    await due(kept);
    const relay = await start();
    const [marker] = await stage.write(1);
    await until(gone(marker?.id), { what: 'the row behind them to go' });
    await committing.query('commit');
    await rolling.query('rollback');
    await until(gone(kept), { what: 'the row to go that was not cancelled', withinMs: 20_000 });
    await until(gone(cancelled), { what: 'the cancelled row to be in the history', withinMs: 30_000 });
    expect(await outcomes([cancelled, kept])).toEqual(['cancelled', 'published']);
    expect(await relay.stop()).toBe(0);
    expect((await stage.taken()).map((message) => message.id)).toEqual([marker?.id, kept]);
  }, 90_000);

  it('3.6: cancel in time counts also when the relay reads the row long after it was due', async () => {
    const relay = await start();
    relay.signal('SIGSTOP');
    const [cancelled, kept] = [await writeLater(1), await writeLater(1)];
    expect(await stage.database.query('select waybill.cancel($1) as done', [cancelled])).toEqual([{ done: true }]);
    await due(kept);
    expect(await stage.database.query('select waybill.cancel($1) as done', [kept])).toEqual([{ done: false }]);
    relay.signal('SIGCONT');
    await until(gone(kept), { what: 'the row to go that was not cancelled', withinMs: 20_000 });
    await until(gone(cancelled), { what: 'the cancelled row to be in the history', withinMs: 30_000 });
    expect(await relay.stop()).toBe(0);
    expect((await stage.taken()).map((message) => message.id)).toEqual([kept]);
  }, 90_000);

  it('3.6: a row that was due may have gone out when a crash brings it back: cancel and discard are too late', async () => {
    // Long enough to be killed in between.
    const first = await start({ WAYBILL_RELAY_CHECKPOINT_INTERVAL: '10s' });
    const id = await writeLater(1);
    const arrived = (): Promise<number> =>
      stage.broker(async (channel) => (await channel.checkQueue(stage.queue)).messageCount);
    await until(async () => (await arrived()) === 1, { what: 'the row to go out', everyMs: 50 });
    await first.kill9();
    expect(await stage.database.query('select state from waybill.outbox')).toEqual([{ state: 'ready' }]);
    const second = await start();
    const answers = new Set<string>();
    while (!(await gone(id)())) {
      const rows = await stage.database.query<{ answer: string }>(
        `select waybill.cancel($1)::text || ', ' || waybill.discard($1) as answer`,
        [id],
      );
      answers.add(rows[0]?.answer ?? '');
    }
    expect(
      [...answers].filter((each) => !each.startsWith('false, not held: ready') && !each.endsWith('published')),
    ).toEqual([]);
    expect(await outcomes([id])).toEqual(['published']);
    expect(await second.stop()).toBe(0);
    expect((await stage.taken()).map((message) => message.id)).toEqual([id, id]);
  }, 90_000);
});
