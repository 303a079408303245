import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { Status } from '../../src/app/status.js';
import { runProgram, startProgram } from '../integration/built-program.js';
import { adminOf } from '../support/admin.js';
import { killRelays } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import { freePorts } from '../support/servers/ports.js';
import { until } from '../support/waiting.js';

describe('waybill status beside a running relay', () => {
  let scene: RelayScene;
  let environment: Record<string, string>;

  beforeAll(async () => {
    scene = await relayScene();
    const [port = 0] = await freePorts(1);
    environment = {
      WAYBILL_DATABASE_URL: scene.database.url,
      WAYBILL_BROKER_URL: scene.vhost.url,
      WAYBILL_ADMIN_LISTEN: `127.0.0.1:${port}`,
    };
  });
  afterEach(killRelays);
  afterAll(() => scene.drop());

  const status = async (): Promise<Status> =>
    JSON.parse((await runProgram(['status', '--json'], environment)).out) as Status;

  it('shows live numbers when the process answers at admin.listen, and of its own relay alone', async () => {
    const relay = scene.start({ env: environment });
    await adminOf(relay);
    await relay.waitForPhase('streaming');
    await scene.publish(20);
    await scene.settled();
    const { live, problems } = await status();
    expect(problems).toEqual([]);
    expect(live).toMatchObject({ phase: 'streaming', pid: relay.pid, ready: true, maxInFlight: 2000 });
    expect(live?.counters.confirmed).toBe(20);
    const text = (await runProgram(['status'], environment)).out;
    expect(text).toMatch(/live +streaming for/);
    expect(text).toContain('since its start: published 20, resent 0');
    const other = await runProgram(['status', '--json'], { ...environment, WAYBILL_RELAY_NAME: 'another' });
    expect((JSON.parse(other.out) as Status).live).toBeNull();
    expect(await relay.stop()).toBe(0);
    expect((await status()).live).toBeNull();
  });

  it('--watch repeats, follows what happens, and ends with 0 at Ctrl-C', async () => {
    const watching = startProgram(['status', '--watch', '--interval', '500ms'], environment);
    await until(() => watching.out().includes('No relay is running'), { withinMs: 20_000, what: 'the first block' });
    const relay = scene.start({ env: environment });
    await until(() => /live +streaming/.test(watching.out()), { withinMs: 30_000, what: 'a block with the relay' });
    watching.child.kill('SIGINT');
    const { code, out, err } = await watching.finished;
    expect([code, err]).toEqual([0, '']);
    expect(out).not.toContain('\u001b');
    expect(out.match(/waybill status at \d\d:\d\d:\d\d UTC, every 0.5 s; Ctrl-C ends it/g)?.length).toBeGreaterThan(1);
    await relay.stop();
  });

  it('--watch --json writes one object a line; --check does not go with it', async () => {
    const watching = startProgram(['status', '--watch', '--json', '--interval', '500ms'], environment);
    await until(() => watching.out().split('\n').length > 2, { withinMs: 20_000, what: 'two lines' });
    watching.child.kill('SIGTERM');
    const { code, out } = await watching.finished;
    expect(code).toBe(0);
    const lines = out.trim().split('\n');
    expect(lines.map((line) => (JSON.parse(line) as Status).relay)).toEqual(lines.map(() => 'default'));
    expect((await runProgram(['status', '--watch', '--check'], environment)).code).toBe(2);
    expect((await runProgram(['status', '--watch', '--interval', '1'], environment)).code).toBe(2);
  });
});
