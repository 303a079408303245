import { spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import { until } from '../support/waiting.js';

const MAIN = fileURLToPath(new URL('../../dist/main.js', import.meta.url));

describe('a log that cannot be written', () => {
  let scene: RelayScene;
  let folder: string;
  let child: ChildProcess | undefined;

  beforeEach(async () => {
    folder = mkdtempSync(join(tmpdir(), 'waybill-log-'));
    scene = await relayScene();
  });
  afterEach(async () => {
    child?.kill('SIGKILL');
    child = undefined;
    killLeftOver();
    await scene.drop();
    rmSync(folder, { recursive: true });
  });

  const pidFile = (): string => join(folder, 'pid');
  /** What has outlived its terminal although it should not. */
  const killLeftOver = (): void => {
    try {
      const pid = Number(readFileSync(pidFile(), 'utf8'));
      if (pid > 1) process.kill(pid, 'SIGKILL');
    } catch {
      // It has ended, or was never started.
    }
  };

  const environment = (): Record<string, string | undefined> => ({
    PATH: process.env['PATH'],
    WAYBILL_DATABASE_URL: scene.database.url,
    WAYBILL_BROKER_URL: scene.vhost.url,
    WAYBILL_LOG_FORMAT: 'json',
    WAYBILL_LOG_LEVEL: 'debug',
    WAYBILL_LOG_MESSAGES: 'all',
    WAYBILL_ADMIN_LISTEN: 'off',
  });

  it('whose reader is gone is told once, on standard error; messages go on, and a stop drains', async () => {
    const started = spawn(process.execPath, [MAIN, 'run'], { env: environment(), stdio: ['ignore', 'pipe', 'pipe'] });
    child = started;
    let out = '';
    let err = '';
    started.stdout.on('data', (chunk: Buffer) => (out += chunk.toString()));
    started.stderr.on('data', (chunk: Buffer) => (err += chunk.toString()));
    const ended = new Promise<number | null>((resolve) => started.once('close', resolve));
    await until(() => out.includes('"phase":"streaming"'), { withinMs: 20_000, what: 'it to stream' });

    started.stdout.destroy();
    const first = await scene.publish(50);
    await scene.settled();
    await until(() => err.includes('the log cannot be written (EPIPE)'), { what: 'it to be told' });
    const second = await scene.publish(50);
    await scene.settled();
    scene.expectIds([...first, ...second]);

    const last = await scene.publish(2_000);
    started.kill('SIGTERM');
    expect(await ended).toBe(0);
    expect(err.match(/cannot be written/g)).toHaveLength(1);
    // What was not published before the stop is published by the next one; nothing was left half done.
    const again = spawn(process.execPath, [MAIN, 'run'], { env: environment(), stdio: 'ignore' });
    child = again;
    await scene.settled();
    scene.expectIds([...first, ...second, ...last]);
  });

  it('because its terminal is gone: what is in flight is drained, and it ends as failed', async () => {
    const code = join(folder, 'code');
    // The shell outlives its terminal, to tell how the program ended.
    const line = `trap '' HUP; "${process.execPath}" "${MAIN}" run & echo $! > "${pidFile()}"; wait $!; echo $? > "${code}"`;
    const terminal = spawn('script', ['-qfc', line, '/dev/null'], {
      env: environment(),
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    child = terminal;
    let out = '';
    terminal.stdout.on('data', (chunk: Buffer) => (out += chunk.toString()));
    await until(() => out.includes('streaming'), { withinMs: 20_000, what: 'it to stream' });
    terminal.kill('SIGKILL');
    const ids = await scene.publish(20);
    const ended = (): string => {
      try {
        return readFileSync(code, 'utf8');
      } catch {
        return '';
      }
    };
    await until(() => ended() !== '', { withinMs: 30_000, what: 'it to end' });
    // 1, or 134 where Node itself stumbles over the terminal at its very end.
    expect(Number(ended())).not.toBe(0);
    await scene.slotReleased();
    const again = spawn(process.execPath, [MAIN, 'run'], { env: environment(), stdio: 'ignore' });
    child = again;
    await scene.settled();
    // Settled before it ended: not one is sent again.
    scene.expectIds(ids);
  });
});
