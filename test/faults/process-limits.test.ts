import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { senderHeldUp } from '../support/back-pressure.js';
import { startFaultProxy } from '../support/fault-proxy.js';
import { outboxStage, tally, type OutboxStage } from '../support/outbox-stage.js';
import { killRelays, startRelay, type RelayProcess } from '../support/relay.js';
import { until } from '../support/waiting.js';

/** Node options that run a script before the program. */
function preload(script: string): Record<string, string> {
  return { NODE_OPTIONS: `--import data:text/javascript,${encodeURIComponent(script)}` };
}

const limit = (pid: number, what: string): void => void execFileSync('prlimit', ['--pid', String(pid), what]);

describe('what the relay gets from its machine', () => {
  let stage: OutboxStage;
  let relay: RelayProcess;

  beforeEach(async () => {
    stage = await outboxStage();
  });
  afterEach(async () => {
    await killRelays();
    await stage.drop();
  });

  async function start(env: Record<string, string> = {}, brokerUrl = stage.vhost.url): Promise<void> {
    relay = startRelay({ databaseUrl: stage.database.url, brokerUrl, env });
    await relay.waitForPhase('streaming');
  }

  /** Its TCP connections and those within this machine. */
  const sockets = (): number =>
    readdirSync(`/proc/${relay.pid}/fd`).filter((fd) => {
      try {
        return readlinkSync(`/proc/${relay.pid}/fd/${fd}`).startsWith('socket:');
      } catch {
        return false;
      }
    }).length;

  it('F114 O4: of 600 bodies of half a MiB for a broker that answers nothing, a process whose address space may grow by 200 MiB takes only its window', async () => {
    const proxy = await startFaultProxy({
      targetHost: new URL(stage.vhost.url).hostname,
      targetPort: Number(new URL(stage.vhost.url).port),
    });
    await start({ WAYBILL_RELAY_MAX_IN_FLIGHT_BYTES: '16MiB' }, proxy.url(stage.vhost.url));
    const address = Number(/VmSize:\s+(\d+) kB/.exec(readFileSync(`/proc/${relay.pid}/status`, 'utf8'))?.[1]);
    limit(relay.pid, `--as=${(address + 200 * 1024) * 1024}`);
    const stalled = proxy.at('amqp.server.basic.ack', 1, 'stall-before');
    await stage.database.query(
      `insert into waybill.outbox (type, payload_bytes)
       select 'bulk', decode(repeat(md5(n::text), 4 * 1024 * 8), 'hex') from generate_series(1, 600) n`,
    );
    await stalled;
    await senderHeldUp(stage.database);
    proxy.resume();
    // One more after it, to show that nothing was skipped on the way.
    const last = await stage.write(1);
    await stage.emptied(90_000);
    expect(relay.log.filter((line) => line.level === 'error' || line.msg.includes('session ended'))).toEqual([]);
    const { messageCount } = await stage.broker((channel) => channel.checkQueue(stage.queue));
    expect(messageCount).toBe(600 + last.length);
    expect(await relay.stop()).toBe(0);
    await proxy.close();
  });

  it('F115: without a file descriptor left it waits, says so, and goes on; it needs few, and keeps none of a session that is over', async () => {
    await start();
    const needed = sockets();
    expect(needed).toBeLessThan(10);
    limit(relay.pid, '--nofile=4:4096');
    await stage.database.query(
      `select pg_terminate_backend(pid) from pg_stat_activity
       where application_name like 'waybill default%' and datname = current_database()`,
    );
    await relay.waitForLog((line) => JSON.stringify(line['err'] ?? '').includes('EMFILE'), 'word of the descriptors');
    const rows = await stage.write(20);
    limit(relay.pid, '--nofile=1024:4096');
    await stage.emptied();
    // A session that ends for another reason has connections that are still good.
    const cutAt = relay.log.length;
    await stage.vhost.server.ctl('close_all_connections', '-p', stage.vhost.name, 'test');
    await until(() => relay.log.slice(cutAt).some((line) => line['phase'] === 'streaming'), {
      withinMs: 20_000,
      what: 'another session',
    });
    await until(() => sockets() <= needed, { what: 'the sockets of the sessions before to be closed' });
    expect(await relay.stop()).toBe(0);
    expect(tally(rows, await stage.taken())).toMatchObject({ lost: 0, phantom: 0, inOrder: true });
  });

  it('F122: what nobody caught ends the process with code 1 and its text, without secrets, and the next one loses nothing', async () => {
    const early = await stage.write(300);
    const { password } = new URL(stage.database.url);
    await start(
      preload(
        `process.on('SIGUSR2', () => void Promise.reject(new Error('nobody caught this: ' + process.env.WAYBILL_DATABASE_URL)))`,
      ),
    );
    early.push(...(await stage.write(500)));
    relay.signal('SIGUSR2');
    expect(await relay.exited).toBe(1);
    expect(relay.noise.join('\n')).toContain('nobody caught this');
    expect(password).not.toBe('');
    expect(relay.noise.join('\n')).not.toContain(password);
    await start();
    early.push(...(await stage.write(10)));
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    expect(tally(early, await stage.taken())).toMatchObject({ lost: 0, phantom: 0, differing: [], inOrder: true });
  });

  it.each([
    ['a day ahead', 86_400_000],
    ['a day behind', -86_400_000],
  ])(
    'F118: a clock that is %s decides nothing: what is due and what is over goes by the database',
    async (_, skewMs) => {
      await start(
        preload(
          `const now = Date.now; Date.now = () => now() + ${skewMs};
         const Real = Date; globalThis.Date = class extends Real { constructor(...a) { a.length ? super(...a) : super(now() + ${skewMs}); } };`,
        ),
      );
      const write = async (columns: string, values: string): Promise<string> =>
        (
          await stage.database.query<{ id: string }>(
            `insert into waybill.outbox (type, payload, ${columns}) values ('clock', '1', ${values}) returning id`,
          )
        )[0]?.id ?? '';
      const lasting = await write('expires_at', `now() + interval '1 hour'`);
      const over = await write('expires_at', `now() - interval '1 hour'`);
      const later = await write('deliver_at', `now() + interval '1 hour'`);
      const past = await write('deliver_at', `now() - interval '1 hour'`);
      const soon = await write('deliver_at', `now() + interval '2 seconds'`);
      await until(async () => (await stage.pending()) === 1, { what: 'all but the later one to be settled' });
      expect(await relay.stop()).toBe(0);
      const ids = (await stage.taken()).map((message) => message.id);
      expect(new Set(ids)).toEqual(new Set([lasting, past, soon]));
      expect(ids).not.toContain(later);
      expect(await stage.database.query('select outcome from waybill.outbox_history where id = $1', [over])).toEqual([
        { outcome: 'expired' },
      ]);
    },
  );
});
