import { randomUUID } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { outboxStage, tally, type OutboxStage } from '../support/outbox-stage.js';
import { killRelays, startRelay, type RelayProcess } from '../support/relay.js';
import { until } from '../support/waiting.js';

const LATER = 2_000;

describe('a row that was published and that somebody keeps locked', () => {
  let stage: OutboxStage;
  let relay: RelayProcess;

  beforeEach(async () => {
    stage = await outboxStage();
  });
  afterEach(async () => {
    await killRelays();
    await stage.drop();
  });

  async function start(history: string): Promise<void> {
    relay = startRelay({
      databaseUrl: stage.database.url,
      brokerUrl: stage.vhost.url,
      env: { WAYBILL_RELAY_HISTORY: history },
    });
    await relay.waitForPhase('streaming');
  }

  it.each(['trace', 'full', 'off'])('3.3 F3 with history: %s a restart sends that row alone again', async (history) => {
    await start(history);
    expect(await relay.stop()).toBe(0);
    const rows = await stage.write(1);
    const lock = await stage.database.connect();
    await lock.query('begin');
    await lock.query('select from waybill.outbox for update');
    rows.push(...(await stage.write(LATER, { together: true })));
    // An application that deletes its rows itself: only the log has this one, and it must go out.
    const deleter = await stage.database.connect();
    const own = { id: randomUUID(), body: '1' };
    await deleter.query('begin');
    await deleter.query(`insert into waybill.outbox (id, type, payload) values ($1, 'order.paid', $2)`, [
      own.id,
      own.body,
    ]);
    await deleter.query('delete from waybill.outbox where id = $1', [own.id]);
    await deleter.query('commit');
    rows.push(own);
    const [written] = await stage.database.query<{ lsn: string }>('select pg_current_wal_insert_lsn()::text as lsn');
    const onlyLocked = (): Promise<unknown> =>
      until(async () => (await stage.pending()) === 1, { what: 'all but the locked row to be settled' });
    await start(history);
    await onlyLocked();
    const isRecorded = async (): Promise<boolean> =>
      (await stage.database.query('select from waybill.outbox_history')).length === LATER + 1;
    if (history !== 'off') await until(isRecorded, { what: 'the history of all that was published' });
    // It is in the table, so the position need not wait for it.
    const isPassed = async (): Promise<boolean> => {
      const sql = `select from pg_replication_slots where confirmed_flush_lsn >= $1 and database = current_database()`;
      return (await stage.database.query(sql, [written?.lsn])).length === 1;
    };
    await until(isPassed, { what: 'the slot to pass what was written', withinMs: 30_000 });
    await relay.kill9();
    await start(history);
    rows.push(...(await stage.write(1)));
    await onlyLocked();
    expect(await stage.pending('ready')).toBe(1);
    await lock.query('rollback');
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    const result = tally(rows, await stage.taken());
    expect(result).toEqual({ lost: 0, phantom: 0, differing: [], inOrder: true, duplicates: 1 });
  });
});
