import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { startFaultProxy, type FaultProxy } from '../support/fault-proxy.js';
import { outboxStage, tally, type OutboxStage, type WriteOptions } from '../support/outbox-stage.js';
import { sharedPostgres } from '../support/database.js';
import { sharedRabbit } from '../support/broker.js';
import { killRelays, startRelay, type RelayProcess } from '../support/relay.js';
import { within } from '../support/waiting.js';
import type { WireUnit } from '../support/wire/units.js';

const WINDOW = 40;
/** Published and not yet settled may be five windows (Admission). */
const UNSETTLED = 5 * WINDOW;
const ROWS = 300;

/** A statement of the relay, told by its text. */
const statement =
  (text: string) =>
  (unit: WireUnit): boolean =>
    unit.names.includes('pg.client.parse') && unit.body.includes(text);

/** The end of the statement with this text: when it has passed, the server carries the statement out. */
function endOf(text: string): (unit: WireUnit) => boolean {
  let begun = false;
  return (unit) => {
    if (statement(text)(unit)) begun = true;
    return begun && unit.names.includes('pg.client.sync');
  };
}

const flushedLsn = (unit: WireUnit): bigint => unit.body.readBigUInt64BE(9);

/** A status update that moves the slot beyond what was reported before. */
function movingStatus(): (unit: WireUnit) => boolean {
  let first: bigint | undefined;
  return (unit) => {
    if (!unit.names.includes('pg.client.standby_status')) return false;
    const flushed = flushedLsn(unit);
    first ??= flushed;
    return flushed > first;
  };
}

describe('kill -9 of the relay', () => {
  let stage: OutboxStage;
  let postgres: FaultProxy;
  let broker: FaultProxy;
  let relay: RelayProcess;

  beforeAll(async () => {
    [postgres, broker] = await Promise.all([
      startFaultProxy({ targetPort: sharedPostgres().port }),
      startFaultProxy({ targetPort: sharedRabbit().port }),
    ]);
  });
  afterAll(async () => {
    await Promise.all([postgres.close(), broker.close()]);
  });
  beforeEach(async () => {
    stage = await outboxStage();
    relay = startRelay({
      databaseUrl: postgres.url(stage.database.url),
      brokerUrl: broker.url(stage.vhost.url),
      env: { WAYBILL_RELAY_MAX_IN_FLIGHT: String(WINDOW) },
    });
    await relay.waitForPhase('streaming');
  });
  afterEach(async () => {
    await killRelays();
    postgres.resume();
    broker.resume();
    await stage.drop();
  });

  /** What the proxies hold back is lost with the process. */
  async function killAtThePoint(): Promise<void> {
    await relay.kill9();
    for (const proxy of [postgres, broker]) {
      proxy.cut();
      proxy.resume();
    }
  }

  /** Writes rows, kills the relay when the trap has sprung, lets another finish without the proxies. */
  async function crash(sprung: Promise<WireUnit>, rows = ROWS, options: WriteOptions = {}) {
    const written = await stage.write(rows, options);
    await within(sprung, 30_000, 'the relay to come to the point of the crash');
    await killAtThePoint();
    const second = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url });
    await second.waitForPhase('streaming');
    await stage.emptied();
    expect(await second.stop()).toBe(0);
    expect(second.noise).toEqual([]);
    return tally(written, await stage.taken());
  }

  const noLoss = { lost: 0, phantom: 0, differing: [] };

  it('F1 after rows came from the log, before they are published: everything arrives, nothing of the rest twice', async () => {
    const result = await crash(broker.at('amqp.client.basic.publish', 37, 'stall-before'));
    expect(result).toMatchObject(noLoss);
    // Of the 36 before, a settle may have come in between or not.
    expect(result.duplicates).toBeLessThanOrEqual(36);
  });

  it('F2 after the bytes were written, before a confirm: copies have the same ids and bodies, at most a window', async () => {
    const result = await crash(broker.at('amqp.server.basic.ack', 1, 'stall-before'));
    expect(result).toMatchObject(noLoss);
    expect(result.duplicates).toBeGreaterThan(0);
    expect(result.duplicates).toBeLessThanOrEqual(WINDOW);
  });

  it('F2 a publish that stops half-way through its frames is sent whole by the next relay', async () => {
    const result = await crash(broker.at('amqp.client.header', 21, 'stall-after'));
    expect(result).toMatchObject(noLoss);
    expect(result.duplicates).toBeLessThanOrEqual(20);
  });

  it('F3 O3 after the confirm, before the rows are deleted: they come again, not more than may be unsettled', async () => {
    const result = await crash(postgres.at(statement('delete from'), 1, 'stall-before'));
    expect(result).toMatchObject(noLoss);
    expect(result.duplicates).toBeGreaterThan(0);
    expect(result.duplicates).toBeLessThanOrEqual(UNSETTLED);
  });

  it('F3 O6 after the delete was committed, before its answer came: the deleted rows do not come again', async () => {
    // All rows are in one settle: there are fewer than may be unsettled.
    const result = await crash(postgres.at(endOf('delete from'), 1, 'stall-after'), 30);
    expect(result).toMatchObject({ ...noLoss, inOrder: true });
    // Rows that were confirmed after the statement had been made.
    expect(result.duplicates).toBeLessThan(30);
  });

  it('F3 after the settle, before its position is reported: the stored checkpoint counts, nothing comes again', async () => {
    const result = await crash(postgres.at(movingStatus(), 1, 'stall-before'), 1);
    expect(result).toEqual({ ...noLoss, duplicates: 0, inOrder: true });
  });

  it('F4 after the position was reported: nothing comes again', async () => {
    const result = await crash(postgres.at(movingStatus(), 1, 'stall-after'), 1);
    expect(result).toEqual({ ...noLoss, duplicates: 0, inOrder: true });
  });

  it('F5 O1 in the middle of a transaction: all of it arrives, copies are the same', async () => {
    const sprung = postgres.at(endOf('delete from'), 2, 'stall-after');
    const result = await crash(sprung, 2_000, { together: true });
    expect(result).toMatchObject(noLoss);
    // What was settled comes again from the log, too; the history says that it need not go out.
    expect(result.duplicates).toBeLessThan(2_000);
  });

  it.each([
    ['before the hold is written', (text: string) => statement(text), 'stall-before'],
    ['after the hold is committed, before its answer came', (text: string) => endOf(text), 'stall-after'],
  ] as const)('F6 O3 %s: the row is held once, its neighbours arrive', async (_, at, action) => {
    const sprung = postgres.at(at('set state = i.state'), 1, action);
    const before = await stage.write(20);
    const [bad] = await stage.write(1, { columns: { exchange: 'nowhere' } });
    const after = await stage.write(20);
    await within(sprung, 30_000, 'the hold');
    await killAtThePoint();
    const second = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url });
    await second.waitForPhase('streaming');
    await expect.poll(() => stage.pending(), { timeout: 20_000 }).toBe(1);
    expect(await second.stop()).toBe(0);
    const kept = await stage.database.query('select id, state, attempts, last_error from waybill.outbox');
    expect(kept).toMatchObject([{ id: bad?.id, state: 'parked', attempts: 1 }]);
    expect(tally([...before, ...after], await stage.taken())).toMatchObject(noLoss);
  });
});
