import { connect, createServer, type AddressInfo, type Server } from 'node:net';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { once } from 'node:events';
import parsePrometheus from 'parse-prometheus-text-format';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { LiveStatus } from '../../src/app/live-status.js';
import type { Status } from '../../src/app/status.js';
import { ADMIN_ON, adminAt, adminOf } from '../support/admin.js';
import { killRelays } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import { until } from '../support/waiting.js';

const TOKEN = 'a-token-of-more-than-sixteen';

describe('admin HTTP', () => {
  let scene: RelayScene;
  let folder: string;

  beforeAll(async () => {
    scene = await relayScene();
    folder = await mkdtemp(join(tmpdir(), 'waybill-admin-'));
  });
  afterEach(killRelays);
  afterAll(async () => {
    await scene.drop();
    await rm(folder, { recursive: true });
  });

  it('shows health, metrics and status of a relay at work', async () => {
    const relay = scene.start({ env: ADMIN_ON });
    const admin = await adminOf(relay);
    await relay.waitForPhase('streaming');
    const ids = await scene.publish(50);
    await scene.settled();

    const alive = await admin.get('/livez');
    expect([alive.status, JSON.parse(alive.body)]).toMatchObject([200, { alive: true }]);
    expect(await admin.ready()).toMatchObject({
      status: 200,
      ready: true,
      parts: [
        {
          name: 'relay',
          ready: true,
          reason: null,
          detail: { phase: 'streaming', connections: { database: true, replication: true, broker: true } },
        },
      ],
    });

    const metrics = await admin.get('/metrics');
    expect(metrics.headers['content-type']).toMatch(/^text\/plain; version=0\.0\.4/);
    expect(parsePrometheus(metrics.body).length).toBeGreaterThan(20);
    expect(await admin.metric('waybill_outbox_confirmed_total', { relay: 'default' })).toBe(ids.length);
    expect(await admin.metric('waybill_outbox_commit_to_confirm_seconds')).toBe(ids.length);
    expect(await admin.metric('waybill_relay_phase', { phase: 'streaming' })).toBe(1);
    expect(await admin.metric('waybill_relay_phase', { phase: 'standby' })).toBe(0);

    const live = JSON.parse((await admin.get('/status/live')).body) as LiveStatus;
    expect(live).toMatchObject({ relay: 'default', ready: true, phase: 'streaming', inFlight: 0, pid: relay.pid });
    expect(live.counters).toMatchObject({ published: ids.length, confirmed: ids.length, settled: ids.length });
    const status = JSON.parse((await admin.get('/status')).body) as Status & { live: LiveStatus };
    expect(status).toMatchObject({ activity: 'active', problems: [], live: { phase: 'streaming' } });
    expect(await relay.stop()).toBe(0);
  });

  it('is unready from the first moment of a stop, and gone after it', async () => {
    const relay = scene.start({ env: ADMIN_ON });
    const admin = await adminOf(relay);
    await until(async () => (await admin.ready()).ready, { withinMs: 20_000, what: 'a ready relay' });
    expect(await relay.stop()).toBe(0);
    await expect(admin.get('/livez')).rejects.toMatchObject({ code: 'ECONNREFUSED' });
  });

  it('security: refuses other hosts, origins, methods, bodies and long headers; nothing may be kept or framed', async () => {
    const admin = await adminOf(scene.start({ env: { ...ADMIN_ON, WAYBILL_ADMIN_HOST_NAMES: 'waybill.internal' } }));
    const status = async (...given: Parameters<typeof admin.get>): Promise<number> =>
      (await admin.get(...given)).status;
    expect(await status('/livez', { headers: { host: 'waybill.internal:1' } })).toBe(200);
    expect(await status('/livez', { headers: { host: 'evil.example' } })).toBe(403);
    expect(await status('/livez', { headers: { origin: 'http://evil.example' } })).toBe(403);
    expect(await status('/livez', { method: 'POST' })).toBe(405);
    expect(await status('/livez', { headers: { 'content-length': '4' }, body: 'body' })).toBe(413);
    expect(await status('/livez', { headers: { 'x-long': 'x'.repeat(10_000) } })).toBe(431);
    expect(await status('/')).toBe(404);
    expect(await admin.get('/livez', { method: 'HEAD' })).toMatchObject({ status: 200, body: '' });
    const { headers } = await admin.get('/livez');
    expect(headers).toMatchObject({ 'cache-control': 'no-store', 'x-content-type-options': 'nosniff' });
    expect(headers['content-security-policy']).toContain("default-src 'none'");
    expect(Object.keys(headers).filter((name) => name.startsWith('access-control'))).toEqual([]);
  });

  it('security: a client that sends its request bit by bit, or nothing, is not waited for', async () => {
    const relay = scene.start({ env: ADMIN_ON });
    const admin = await adminOf(relay);
    const slow = ['GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: ', ''].map(async (beginning) => {
      const socket = connect(admin.port, '127.0.0.1');
      await once(socket, 'connect');
      socket.on('error', () => undefined);
      const began = performance.now();
      const drip = setInterval(() => beginning !== '' && socket.writable && socket.write('x'), 200);
      socket.write(beginning);
      socket.resume();
      await once(socket, 'close');
      clearInterval(drip);
      return performance.now() - began;
    });
    for (const tookMs of await Promise.all(slow)) expect(tookMs).toBeLessThan(15_000);
    expect((await admin.get('/livez')).status).toBe(200);
  });

  it('security: the status needs the token, which may change; probes and scrapers need none', async () => {
    const tokenFile = join(folder, 'token');
    await writeFile(tokenFile, `${TOKEN}\n`);
    const relay = scene.start({
      env: { ...ADMIN_ON, WAYBILL_ADMIN_TOKEN_FILE: tokenFile, WAYBILL_ADMIN_LISTEN: '0.0.0.0:0' },
    });
    const admin = await adminOf(relay);
    const bearer = (token: string) => ({ headers: { authorization: `Bearer ${token}` } });
    for (const path of ['/status', '/status/live']) {
      expect((await admin.get(path)).status).toBe(401);
      expect((await admin.get(path, bearer('wrong'))).status).toBe(401);
    }
    expect((await admin.get('/status/live', bearer(TOKEN))).status).toBe(200);
    for (const path of ['/livez', '/metrics']) expect((await admin.get(path)).status).toBe(200);
    await writeFile(tokenFile, `${TOKEN}-renewed`);
    expect((await admin.get('/status/live', bearer(TOKEN))).status).toBe(401);
    expect((await admin.get('/status/live', bearer(`${TOKEN}-renewed`))).status).toBe(200);
    await writeFile(tokenFile, '');
    expect((await admin.get('/status/live', bearer(''))).status).toBe(503);
    expect(JSON.stringify(relay.log)).not.toContain(TOKEN);
  });

  it('security: open to other machines without a token, or with a poor one, it does not start', async () => {
    const open = scene.start({ env: { WAYBILL_ADMIN_LISTEN: '0.0.0.0:0' } });
    expect(await open.exited).toBe(2);
    expect(open.noise.join('\n')).toContain('admin.tokenFile');
    const tokenFile = join(folder, 'short');
    await writeFile(tokenFile, 'short');
    const poor = scene.start({ env: { WAYBILL_ADMIN_LISTEN: '0.0.0.0:0', WAYBILL_ADMIN_TOKEN_FILE: tokenFile } });
    expect(await poor.exited).toBe(2);
  });

  describe('beside another process on the port', () => {
    let other: Server;
    afterEach(() => other.close());

    it('says which key, delivers all the same, and takes the port when it is free', async () => {
      other = createServer().listen(0, '127.0.0.1');
      await once(other, 'listening');
      const { port } = other.address() as AddressInfo;
      const relay = scene.start({ env: { WAYBILL_ADMIN_LISTEN: `127.0.0.1:${port}` } });
      const line = await relay.waitForLog(({ msg }) => msg.startsWith('admin HTTP cannot listen'), 'the complaint');
      expect(line).toMatchObject({ level: 'error', key: 'admin.listen', port });
      expect(line.msg).toContain('EADDRINUSE');
      await relay.waitForPhase('streaming');
      await scene.publish(3);
      await scene.settled();
      other.close();
      await relay.waitForLog(({ msg }) => msg === 'admin HTTP listens', 'the port to be taken');
      expect((await adminAt(port).ready()).status).toBe(200);
      expect(await relay.stop()).toBe(0);
    });
  });
});
