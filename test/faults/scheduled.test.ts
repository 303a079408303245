import { readFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { startBrokerProbe } from '../support/broker-probe.js';
import { startFaultProxy } from '../support/fault-proxy.js';
import { outboxStage, type OutboxStage } from '../support/outbox-stage.js';
import { killRelays, startRelay } from '../support/relay.js';
import { until } from '../support/waiting.js';

const MANY = 100_000;
const WINDOW = 1_000;

/** The most resident memory that the process ever had, in MiB. */
function peakRssMiB(pid: number): number {
  return Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024;
}

describe('rows that wait for their time', () => {
  let stage: OutboxStage;

  beforeEach(async () => {
    stage = await outboxStage();
  });
  afterEach(async () => {
    await killRelays();
    await stage.drop();
  });

  it('3.6 O4: 100,000 rows due at one moment all go out once, through the window; the stream goes on beside them', async () => {
    const broker = await startFaultProxy({ targetPort: stage.vhost.server.port, targetHost: stage.vhost.server.host });
    const relay = startRelay({
      databaseUrl: stage.database.url,
      brokerUrl: broker.url(stage.vhost.url),
      env: { WAYBILL_RELAY_MAX_IN_FLIGHT: String(WINDOW), WAYBILL_RELAY_HISTORY: 'off' },
    });
    await relay.waitForPhase('streaming');
    await stage.database.query(
      `insert into waybill.outbox (type, payload, deliver_at)
       select 'due', json_build_object('n', n), now() + interval '1 hour' from generate_series(1, $1::int) n`,
      [MANY],
    );
    await until(async () => (await stage.pending('scheduled')) === MANY, {
      withinMs: 120_000,
      everyMs: 250,
      what: 'all rows to be held until they are due',
    });
    expect(broker.count('amqp.client.basic.publish')).toBeLessThanOrEqual(1);
    let [inFlight, most, lastTag] = [0, 0, 0n];
    broker.tap(({ names, body }) => {
      if (names.includes('amqp.client.basic.publish')) most = Math.max(most, (inFlight += 1));
      if (!names.includes('amqp.server.basic.ack')) return;
      const tag = body.readBigUInt64BE(4);
      if (body.readUInt8(12) === 1) {
        inFlight -= Number(tag - lastTag);
        lastTag = tag;
      } else inFlight -= 1;
    });
    const probe = await startBrokerProbe({ url: stage.vhost.url, exchange: 'waybill.events' });
    // What an hour of waiting comes to: all of them are due now.
    await stage.database.query(
      `update waybill.outbox set next_attempt_at = clock_timestamp() where state = 'scheduled'`,
    );
    const markers: { id: string; arrivedBefore: number }[] = [];
    while (markers.length < 20 && probe.messages.length < MANY) {
      const arrivedBefore = probe.messages.length;
      const [row] = await stage.write(1, { type: 'marker' });
      if (row) markers.push({ id: row.id, arrivedBefore });
      await until(() => probe.messages.length >= Math.min(arrivedBefore + MANY / 40, MANY), {
        withinMs: 60_000,
        what: 'rows to go out',
      });
    }
    await probe.waitFor(MANY + markers.length, 120_000);
    await stage.emptied(60_000);
    const ids = probe.ids();
    expect([ids.length, new Set(ids).size]).toEqual([MANY + markers.length, MANY + markers.length]);
    expect(markers.length).toBeGreaterThan(5);
    // None waited for the end of the crowd: each took its place among a few windows of it.
    for (const { id, arrivedBefore } of markers) expect(ids.indexOf(id) - arrivedBefore).toBeLessThan(MANY / 5);
    // Acks out of order make the count of the tap a little high, never low.
    expect(most).toBeGreaterThan(WINDOW / 10);
    expect(most).toBeLessThanOrEqual(WINDOW);
    expect(peakRssMiB(relay.pid)).toBeLessThan(200);
    expect(await relay.stop()).toBe(0);
    await probe.close();
    await broker.close();
  }, 300_000);

  it('3.6 F118: rows far in the future wait, further than any timer reaches, and nothing spins for them', async () => {
    const relay = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url });
    await relay.waitForPhase('streaming');
    const whens = [
      `'9999-12-31 23:59:59+00'`,
      `'294276-12-31 23:59:59+00'`,
      // Past 2^31 and 2^32 milliseconds, where timers of 32 bits begin anew.
      `now() + interval '2147483648 milliseconds'`,
      `now() + interval '4294967297 milliseconds'`,
    ];
    for (const when of whens) {
      await stage.database.query(`insert into waybill.outbox (type, payload, deliver_at) values ('far', '1', ${when})`);
    }
    await stage.database.query(
      `insert into waybill.outbox (type, payload, expires_at) values ('lasting', '1', '9999-12-31')`,
    );
    await until(async () => (await stage.pending('scheduled')) === whens.length, { what: 'the far rows to wait' });
    const soon = await stage.write(20);
    await until(async () => (await stage.pending()) === whens.length, { what: 'the others to go out' });
    // They have been looked at many times: due rows are looked for each second.
    const cpu = (): number => {
      const fields = readFileSync(`/proc/${relay.pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? [];
      return (Number(fields[11]) + Number(fields[12])) / 100;
    };
    const [before, began] = [cpu(), performance.now()];
    await until(() => performance.now() - began > 3_000, { what: 'three seconds' });
    expect(cpu() - before).toBeLessThan(1.5);
    expect(relay.noise).toEqual([]);
    const rows = await stage.database.query<{ same: boolean; attempts: number }>(
      `select next_attempt_at = deliver_at as same, attempts from waybill.outbox`,
    );
    expect(rows).toEqual(whens.map(() => ({ same: true, attempts: 0 })));
    expect(await relay.stop()).toBe(0);
    const types = (await stage.taken()).map((message) => message.type);
    expect(types.filter((type) => type === 'far')).toEqual([]);
    expect(types).toHaveLength(soon.length + 1);
  });
});
