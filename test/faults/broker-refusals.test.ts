import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { startBrokerProbe } from '../support/broker-probe.js';
import { outboxStage, tally, type OutboxStage } from '../support/outbox-stage.js';
import { killRelays, startRelay, type RelayProcess } from '../support/relay.js';
import { until } from '../support/waiting.js';

const noLoss = { lost: 0, phantom: 0, differing: [] };

/** True when n rows are parked and no other is left. */
async function onlyParked(stage: OutboxStage, n: number): Promise<boolean> {
  return (await stage.pending()) === n && (await stage.pending('parked')) === n;
}

interface HeldRow extends Record<string, unknown> {
  id: string;
  state: string;
  attempts: number;
  last_error: string | null;
}

describe('what the broker or the client refuses', () => {
  let stage: OutboxStage;
  let relay: RelayProcess;

  beforeEach(async () => {
    stage = await outboxStage();
  });
  afterEach(async () => {
    await killRelays();
    await stage.drop();
  });

  async function start(env: Record<string, string> = {}): Promise<void> {
    relay = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url, env });
    await relay.waitForPhase('streaming');
  }
  const held = (): Promise<HeldRow[]> =>
    stage.database.query<HeldRow>('select id, state, attempts, last_error from waybill.outbox order by seq');

  it('F72 fact 32 a row for a missing exchange is parked with its reason, the others go on in order', async () => {
    await start();
    const before = await stage.write(20);
    const bad = await stage.write(3, { columns: { exchange: 'nowhere' } });
    const after = await stage.write(20);
    await until(() => onlyParked(stage, 3), { what: 'three rows to stay', withinMs: 20_000 });
    expect(await held()).toMatchObject(
      bad.map(({ id }) => ({
        id,
        state: 'parked',
        attempts: 1,
        last_error: expect.stringContaining('nowhere') as unknown,
      })),
    );
    const line = await relay.waitForLog((each) => each['result'] === 'parked', 'the parked row');
    expect(line).toMatchObject({ level: 'error', messageId: bad[0]?.id, type: 'order.paid' });
    expect(await relay.stop()).toBe(0);
    expect(tally([...before, ...after], await stage.taken())).toEqual({ ...noLoss, duplicates: 0, inOrder: true });
  });

  it('F72 F91 an exchange that is deleted under load parks its own rows only; the others lose nothing', async () => {
    await stage.broker((channel) => channel.assertExchange('short-lived', 'fanout'));
    await stage.broker((channel) => channel.bindQueue(stage.queue, 'short-lived', ''));
    await start({ WAYBILL_RELAY_MAX_IN_FLIGHT: '50' });
    const probe = await startBrokerProbe({ url: stage.vhost.url, exchange: 'short-lived' });
    const [good, doomed] = [[], []] as { id: string; body: string }[][];
    let deleted = false;
    for (let round = 0; round < 30; round += 1) {
      good?.push(...(await stage.write(10)));
      doomed?.push(...(await stage.write(1, { columns: { exchange: 'short-lived' } })));
      if (round === 12) await probe.waitFor(5);
      if (round === 15) {
        await stage.broker((channel) => channel.deleteExchange('short-lived'));
        deleted = true;
      }
    }
    expect(deleted).toBe(true);
    const isQuiet = async (): Promise<boolean> => (await stage.pending()) === (await stage.pending('parked'));
    await until(isQuiet, { what: 'only parked rows to stay', withinMs: 30_000 });
    const parked = new Set((await held()).map((row) => row.id));
    expect(await relay.stop()).toBe(0);
    const messages = await stage.taken();
    expect(
      tally(
        good ?? [],
        messages.filter((each) => !doomed?.some(({ id }) => id === each.id)),
      ),
    ).toMatchObject(noLoss);
    // Each doomed row arrived or is parked, and its neighbours in the same channel are not taken for it.
    const arrived = new Set(messages.map((each) => each.id));
    for (const { id } of doomed ?? []) expect(arrived.has(id) !== parked.has(id)).toBe(true);
    expect(parked.size).toBeGreaterThanOrEqual(14);
    expect((doomed ?? []).filter((row) => parked.has(row.id))).toHaveLength(parked.size);
    await probe.close();
  });

  it('F78 a body over the limit is parked, its neighbours arrive in order', async () => {
    await start({ WAYBILL_RELAY_MAX_BODY_BYTES: '1KiB' });
    const before = await stage.write(5);
    const [large] = await stage.write(1, { padding: 2_000 });
    const after = await stage.write(5);
    await until(() => onlyParked(stage, 1), { what: 'the large row to stay', withinMs: 20_000 });
    const [row] = await held();
    expect(row).toMatchObject({ id: large?.id, state: 'parked' });
    expect(row?.last_error).toMatch(/^too_large: the body has 20\d\d bytes; at most 1024/);
    expect(await relay.stop()).toBe(0);
    expect(tally([...before, ...after], await stage.taken())).toEqual({ ...noLoss, duplicates: 0, inOrder: true });
  });

  it('F72, F80: rows for an internal exchange, or one with a line break, or with a direct reply-to, cost their neighbours no channel each', async () => {
    await stage.broker(async (channel) => {
      await channel.assertExchange('inner', 'fanout', { internal: true });
      await channel.assertExchange('inner too', 'fanout', { internal: true });
    });
    await start();
    const good = await stage.write(30);
    for (let round = 0; round < 20; round += 1) {
      await stage.write(1, { columns: { exchange: 'inner' } });
      await stage.write(1, { columns: { exchange: 'inner too' } });
      await stage.write(1, { columns: { exchange: 'waybill.events\n' } });
      await stage.write(1, { columns: { reply_to: 'amq.rabbitmq.reply-to' } });
      good.push(...(await stage.write(5)));
    }
    await until(() => onlyParked(stage, 80), { what: 'the bad rows to stay', withinMs: 30_000 });
    const reasons = new Set((await held()).map(({ last_error: text }) => text?.replace(/in vhost .*/s, '')));
    expect([...reasons].sort()).toEqual([
      expect.stringMatching(/^bad_property: reply_to amq\.rabbitmq\.reply-to .* name a queue/),
      expect.stringMatching(/^exchange_missing: exchange "waybill\.events\\n" cannot exist/),
      expect.stringMatching(/^refused_by_broker: .*internal exchange 'inner too'/),
      expect.stringMatching(/^refused_by_broker: .*internal exchange 'inner'/),
    ]);
    // Not one for each row, of which there are 80.
    expect(relay.log.filter((line) => line.msg.startsWith('a channel closed')).length).toBeLessThanOrEqual(10);
    expect(await relay.stop()).toBe(0);
    expect(tally(good, await stage.taken())).toMatchObject(noLoss);
  });

  it('F79 F80 F81 fact 42 what no constraint stopped is parked with its reason, neighbours arrive in order', async () => {
    await stage.database.query(
      `do $$ declare c name; begin
         for c in select conname from pg_constraint where conrelid = 'waybill.outbox'::regclass and contype = 'c'
         loop execute format('alter table waybill.outbox drop constraint %I', c); end loop;
       end $$`,
    );
    await start();
    const bad: [RegExp, Record<string, unknown>][] = [
      [/^bad_header: headers have \d+ bytes/, { headers: JSON.stringify({ large: 'x'.repeat(70_000) }) }],
      [/^reserved_header: header "BCC"/, { headers: '{"BCC": "audit"}' }],
      [/^reserved_header: header "x-Death"/, { headers: '{"x-Death": "1"}' }],
      [/^bad_header: header "deep" is not a scalar/, { headers: '{"deep": {"a": [1]}}' }],
      [
        /^bad_header: header "deepest" is not a scalar/,
        { headers: `{"deepest": ${'['.repeat(5_000)}${']'.repeat(5_000)}}` },
      ],
      [/^bad_header: headers are not a JSON object/, { headers: '[1, 2]' }],
      [/^bad_header: a header name has 300 bytes/, { headers: JSON.stringify({ ['n'.repeat(300)]: 1 }) }],
      [/^name_too_long: routing_key has 300 bytes/, { routing_key: 'r'.repeat(300) }],
      [/^name_too_long: correlation_id has 512 bytes/, { correlation_id: 'ü'.repeat(256) }],
      [/^name_too_long: exchange has 256 bytes/, { exchange: 'e'.repeat(256) }],
      [/^bad_property: priority 300 /, { priority: 300 }],
      [/^bad_property: priority -1 /, { priority: -1 }],
    ];
    const good = await stage.write(3);
    const reasons = new Map<string, RegExp>();
    for (const [reason, columns] of bad) {
      const [row] = await stage.write(1, { columns });
      reasons.set(row?.id ?? '', reason);
      good.push(...(await stage.write(3)));
    }
    await until(() => onlyParked(stage, bad.length), { what: 'the bad rows to stay', withinMs: 20_000 });
    for (const row of await held()) {
      expect(row.state).toBe('parked');
      expect(row.last_error).toMatch(reasons.get(row.id) ?? /never/);
    }
    expect(await relay.stop()).toBe(0);
    expect(tally(good, await stage.taken())).toEqual({ ...noLoss, duplicates: 0, inOrder: true });
  });
});

describe('permissions and ways in', () => {
  let stage: OutboxStage;
  const user = `waybill-${process.pid}-${Date.now()}`;

  beforeAll(async () => {
    stage = await outboxStage();
    await stage.vhost.server.ctl('add_user', user, 'first');
  });
  afterEach(killRelays);
  afterAll(async () => {
    await stage.vhost.server.ctl('delete_user', user);
    await stage.drop();
  });

  const urlOf = (password: string, vhost = stage.vhost.url): string => {
    const url = new URL(vhost);
    url.username = user;
    url.password = password;
    return url.href;
  };

  it('F82 an exchange that may not be written to costs its own rows only: parked with 403', async () => {
    await stage.broker(async (channel) => {
      await channel.assertExchange('secret', 'fanout');
      await channel.bindQueue(stage.queue, 'secret', '');
    });
    await stage.vhost.server.ctl('set_permissions', '-p', stage.vhost.name, user, '.*', '^(waybill|amq).*', '.*');
    const relay = startRelay({ databaseUrl: stage.database.url, brokerUrl: urlOf('first') });
    await relay.waitForPhase('streaming');
    const good = await stage.write(30);
    const bad: { id: string }[] = [];
    for (let round = 0; round < 30; round += 1) {
      bad.push(...(await stage.write(1, { columns: { exchange: 'secret' } })));
      good.push(...(await stage.write(5)));
    }
    await until(() => onlyParked(stage, 30), { what: 'the bad rows to stay', withinMs: 30_000 });
    const rows = await stage.database.query<HeldRow>('select * from waybill.outbox order by seq');
    expect(rows).toMatchObject(bad.map(({ id }) => ({ id, state: 'parked' })));
    for (const row of rows) expect(row.last_error).toMatch(/403.*secret/);
    // What is known of the exchange spares the channel: not one death for each row.
    expect(relay.log.filter((line) => line.msg.startsWith('a channel closed')).length).toBeLessThanOrEqual(10);
    expect(await relay.stop()).toBe(0);
    const messages = await stage.taken();
    expect(tally(good, messages)).toMatchObject(noLoss);
    await stage.database.query('truncate waybill.outbox');
  });

  it('F82 O8 a user who may not declare the lock queue is told so, instead of standing by for nobody', async () => {
    await stage.vhost.server.ctl('set_permissions', '-p', stage.vhost.name, user, '^waybill\\.events$', '.*', '.*');
    const relay = startRelay({ databaseUrl: stage.database.url, brokerUrl: urlOf('first') });
    const line = await relay.waitForLog((each) => each.level === 'error', 'the error');
    expect(line['err']).toMatchObject({
      code: 'WAYBILL_BROKER_REFUSED',
      message: expect.stringMatching(/waybill\.lock\..*refused/) as unknown,
      hint: expect.stringContaining('permissions') as unknown,
    });
    expect(relay.phase()).not.toBe('standby');
    expect(await relay.stop()).toBe(0);
    await stage.vhost.server.ctl('set_permissions', '-p', stage.vhost.name, user, '.*', '^(waybill|amq).*', '.*');
  });

  it('F83 F84 a wrong password and a missing virtual host are told clearly, without a crash loop, and heal', async () => {
    const other = await outboxStage();
    const missing = `${other.vhost.name}-late`;
    const wrong = startRelay({ databaseUrl: stage.database.url, brokerUrl: urlOf('second') });
    const nowhere = startRelay({
      databaseUrl: other.database.url,
      brokerUrl: other.vhost.server.url(missing),
    });
    const waiting = await stage.write(1);
    const told = (relay: RelayProcess): Promise<unknown> =>
      relay.waitForLog((line) => line.level === 'error', 'the error').then((line) => line['err']);
    expect(await told(wrong)).toMatchObject({
      code: 'WAYBILL_BROKER_REFUSED',
      hint: expect.stringContaining('password') as unknown,
    });
    expect(await told(nowhere)).toMatchObject({
      code: 'WAYBILL_BROKER_REFUSED',
      message: expect.stringContaining('virtual host') as unknown,
      hint: expect.stringContaining('add_vhost') as unknown,
    });
    expect(JSON.stringify([...wrong.log, ...wrong.noise])).not.toContain('second');
    await Promise.all([
      stage.vhost.server.ctl('change_password', user, 'second'),
      other.vhost.server.addVhost(missing),
    ]);
    // Why so long: what needs a person is looked at again every 15 s.
    await Promise.all([wrong.waitForPhase('streaming', 40_000), nowhere.waitForPhase('streaming', 40_000)]);
    await stage.emptied();
    for (const relay of [wrong, nowhere]) {
      expect(relay.log.filter((line) => line.level === 'error').length).toBeLessThanOrEqual(3);
      expect(await relay.stop()).toBe(0);
    }
    expect(
      tally(
        waiting,
        (await stage.taken()).filter(({ id }) => id === waiting[0]?.id),
      ),
    ).toMatchObject(noLoss);
    await other.vhost.server.deleteVhost(missing);
    await other.drop();
  });
});
