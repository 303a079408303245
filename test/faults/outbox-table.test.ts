import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { outboxStage, tally, type OutboxStage, type WrittenRow } from '../support/outbox-stage.js';
import { killRelays, startRelay, type RelayProcess } from '../support/relay.js';
import { until } from '../support/waiting.js';

describe('what others do to the outbox table itself', () => {
  let stage: OutboxStage;
  let relay: RelayProcess;

  beforeEach(async () => {
    stage = await outboxStage();
  });
  afterEach(async () => {
    await killRelays();
    await stage.drop();
  });

  async function start(phase = 'streaming'): Promise<void> {
    relay = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url });
    if (phase) await relay.waitForPhase(phase);
  }
  const errorCode = ({ err }: Record<string, unknown>): string | undefined =>
    (err as { code?: string } | undefined)?.code;

  it('F49: a table that is renamed away is told, and nothing is lost when it is back', async () => {
    await start();
    const rows = await stage.write(20);
    await stage.emptied();
    await stage.database.query('alter table waybill.outbox rename to outbox_aside');
    await stage.database.query(`insert into waybill.outbox_aside (type, payload) values ('order.paid', '1')`);
    const line = await relay.waitForLog((each) => errorCode(each) === 'WAYBILL_SCHEMA_MISSING', 'word of it', 60_000);
    // Not the end of the process: it has worked, so a migration may be under way.
    expect([line.level, line['retryInMs']]).toEqual(['error', 15_000]);
    await stage.database.query('alter table waybill.outbox_aside rename to outbox');
    rows.push(...(await stage.write(5)));
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    const messages = await stage.taken();
    expect(
      tally(
        rows,
        messages.filter(({ body }) => body.toString() !== '1'),
      ),
    ).toMatchObject({ lost: 0, inOrder: true });
    expect(messages.filter(({ body }) => body.toString() === '1').length).toBeGreaterThan(0);
  });

  it('F49: another table of the same name is taken up loudly, by a new slot and a table pass; rows in the old one are not', async () => {
    await start();
    expect(await relay.stop()).toBe(0);
    await stage.database.query('alter table waybill.outbox rename to outbox_old');
    await stage.database.query(
      `create table waybill.outbox (like waybill.outbox_old including all);
       insert into waybill.outbox_old (type, payload) values ('order.paid', '"old"')`,
    );
    const rows = await stage.write(10);
    await start();
    const line = await relay.waitForLog((each) => each.level === 'error', 'word of it');
    expect(line.msg).toContain('dropping the replication slot');
    rows.push(...(await stage.write(10)));
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    expect(await stage.database.query('select from waybill.outbox_old')).toHaveLength(1);
    expect(tally(rows, await stage.taken())).toMatchObject({ lost: 0, phantom: 0, inOrder: true });
  });

  it('F57: rows whose seq is below 1 are found by the table pass, by the sweep and by source: table, and removed when cancelled', async () => {
    /** Ids of two rows to be published, and one that was cancelled. */
    const writeBelow = async (seq: bigint): Promise<WrittenRow[]> => {
      const rows = await stage.database.query<WrittenRow & { state: string }>(
        `insert into waybill.outbox (seq, type, payload, state) overriding system value
         values ($1, 't', '1', 'ready'), ($1 - 1, 't', '2', 'ready'), ($1 - 2, 't', '3', 'cancelled')
         returning id, payload::text as body, state`,
        [String(seq)],
      );
      return rows.filter(({ state }) => state === 'ready');
    };
    const rows = await writeBelow(0n);
    await start();
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    // What the slot has passed by is left to the sweep.
    rows.push(...(await writeBelow(-(2n ** 63n) + 3n)));
    await stage.database.query(
      `select pg_replication_slot_advance(slot_name, pg_current_wal_insert_lsn()) from pg_replication_slots
       where database = current_database()`,
    );
    await start();
    await relay.waitForLog(({ msg }) => msg.startsWith('the sweep published'), 'the sweep');
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    rows.push(...(await writeBelow(-10n)));
    relay = startRelay({
      databaseUrl: stage.database.url,
      brokerUrl: stage.vhost.url,
      env: { WAYBILL_RELAY_SOURCE: 'table' },
    });
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    expect(tally(rows, await stage.taken())).toMatchObject({ lost: 0, phantom: 0, duplicates: 0 });
  });

  it('F50: a partitioned outbox is refused before anything is read from it', async () => {
    await stage.database.query(
      `alter table waybill.outbox rename to outbox_plain;
       create table waybill.outbox (like waybill.outbox_plain including defaults including generated) partition by list (state);
       create table waybill.outbox_rest partition of waybill.outbox default`,
    );
    await start('');
    const line = await relay.waitForLog((each) => each.level === 'error', 'the reason why it waits');
    expect(errorCode(line)).toBe('WAYBILL_DATABASE_UNSUITABLE');
    expect(JSON.stringify(line)).toContain('partitioned');
    expect(relay.phase()).not.toBe('streaming');
    expect(await relay.stop()).toBe(0);
  });

  it('F133: rows of a child table are left alone, and so are rows of the outbox that lie in the same places', async () => {
    const rows = await stage.write(40);
    await stage.database.query(
      `create table waybill.child (like waybill.outbox including defaults) inherits (waybill.outbox);
       insert into waybill.child select * from waybill.outbox`,
    );
    const far = `now() + interval '1 hour'`;
    await stage.database.query(
      `update waybill.child set type = 'child', state = 'scheduled', next_attempt_at = clock_timestamp() where ctid < '(0,10)'`,
    );
    await stage.database.query(
      `insert into waybill.outbox (type, payload, deliver_at) select 'far', '1', ${far} from generate_series(1, 60)`,
    );
    const shared = await stage.database.query(
      'select from only waybill.outbox o join waybill.child c on c.ctid = o.ctid',
    );
    expect(shared.length).toBeGreaterThan(20);
    const children = (): Promise<Record<string, unknown>[]> =>
      stage.database.query('select seq, state, type from waybill.child order by seq');
    const before = await children();
    await start();
    rows.push(...(await stage.write(5)));
    const left = async (): Promise<number> =>
      (await stage.database.query<{ n: number }>('select count(*)::int as n from only waybill.outbox'))[0]?.n ?? -1;
    await until(async () => (await left()) === 60, { what: 'the far rows alone to stay' });
    await relay.waitForPhase('streaming');
    expect(await relay.stop()).toBe(0);
    // Through the sweep and the search for due rows of another start, too.
    await start();
    rows.push(...(await stage.write(5)));
    await until(async () => (await left()) === 60, { what: 'the new rows to go out' });
    expect(await relay.stop()).toBe(0);
    expect(await children()).toEqual(before);
    expect(tally(rows, await stage.taken())).toEqual({
      ...{ lost: 0, phantom: 0, differing: [], duplicates: 0 },
      inOrder: true,
    });
  });

  it('F57 F58: TRUNCATE ... RESTART IDENTITY and no replica identity: nothing depends on seq, no row is taken for another', async () => {
    await stage.database.query('alter table waybill.outbox replica identity nothing');
    await start();
    const rows: WrittenRow[] = await stage.write(100);
    await stage.emptied();
    await stage.database.query('truncate waybill.outbox restart identity');
    rows.push(...(await stage.write(50)));
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    rows.push(...(await stage.write(5)));
    await stage.database.query('truncate waybill.outbox restart identity');
    rows.push(...(await stage.write(5)));
    const [{ seq } = { seq: '' }] = await stage.database.query<{ seq: string }>(
      'select max(seq)::text as seq from waybill.outbox',
    );
    expect(seq).toBe('5');
    await start();
    await stage.emptied();
    rows.push(...(await stage.write(5)));
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    // What was truncated had been committed: it is in the log, and goes out like what its application deleted itself.
    expect(tally(rows, await stage.taken())).toMatchObject({ lost: 0, phantom: 0, differing: [], inOrder: true });
  });
});
