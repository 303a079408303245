import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
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

  async function start(env: Record<string, string> = {}): Promise<void> {
    relay = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url, env });
    await relay.waitForPhase('streaming');
  }

  it('F114 O4: 400 bodies of half a MiB go through a process whose address space may grow by 200 MiB only', async () => {
    await start({ WAYBILL_RELAY_MAX_IN_FLIGHT_BYTES: '16MiB' });
    const address = Number(/VmSize:\s+(\d+) kB/.exec(readFileSync(`/proc/${relay.pid}/status`, 'utf8'))?.[1]);
    limit(relay.pid, `--as=${(address + 200 * 1024) * 1024}`);
    const client = await stage.database.connect();
    await client.query(
      `insert into waybill.outbox (type, payload_bytes)
       select 'bulk', decode(repeat(md5(n::text), 4 * 1024 * 8), 'hex') from generate_series(1, 400) n`,
    );
    // One more after it, to show that nothing was skipped on the way.
    const last = await stage.write(1);
    await stage.emptied(90_000);
    expect(relay.log.filter((line) => line.level === 'error' || line.msg.includes('session ended'))).toEqual([]);
    const { messageCount } = await stage.broker((channel) => channel.checkQueue(stage.queue));
    expect(messageCount).toBe(400 + last.length);
    expect(await relay.stop()).toBe(0);
  });

  it('F115: without a file descriptor left it waits, says so, and goes on; it needs few', async () => {
    await start();
    const sockets = readdirSync(`/proc/${relay.pid}/fd`).filter((fd) => {
      try {
        return readlinkSync(`/proc/${relay.pid}/fd/${fd}`).startsWith('socket:');
      } catch {
        return false;
      }
    });
    expect(sockets.length).toBeLessThan(10);
    limit(relay.pid, '--nofile=4:4096');
    await stage.database.query(
      `select pg_terminate_backend(pid) from pg_stat_activity
       where application_name like 'waybill default%' and datname = current_database()`,
    );
    await relay.waitForLog((line) => JSON.stringify(line['err'] ?? '').includes('EMFILE'), 'word of the descriptors');
    const rows = await stage.write(20);
    limit(relay.pid, '--nofile=1024:4096');
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    expect(tally(rows, await stage.taken())).toMatchObject({ lost: 0, phantom: 0, inOrder: true });
  });

  it('F122: what nobody caught ends the process with code 1 and its text, and the next one loses nothing', async () => {
    const early = await stage.write(300);
    await start(preload(`process.on('SIGUSR2', () => void Promise.reject(new Error('nobody caught this')))`));
    early.push(...(await stage.write(500)));
    relay.signal('SIGUSR2');
    expect(await relay.exited).toBe(1);
    expect(relay.noise.join('\n')).toContain('nobody caught this');
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
