import { describe, expect, it } from 'vitest';
import type { Daemon } from '../../../src/app/daemon.js';
import { runUntilStopped } from '../../../src/cli/run.js';
import { loadConfig, type Config } from '../../../src/config/load.js';
import { ConfigInvalid } from '../../../src/config/problems.js';
import { WaybillError } from '../../../src/core/errors.js';
import type { Clock } from '../../../src/runtime/clock.js';
import { silentLogger, type AdjustableLogger } from '../../../src/telemetry/log.js';

const config = loadConfig({
  environment: { WAYBILL_DATABASE_URL: 'postgres://localhost/a', WAYBILL_BROKER_URL: 'amqp://localhost' },
  readFile: () => '',
});

/** A service under the test's hands, its signals, and a clock whose time only passes when told. */
function stage(
  stop: () => Promise<'drained' | 'incomplete'>,
  logger: AdjustableLogger = silentLogger,
  reload: () => Config = () => config,
) {
  let signal: (name: NodeJS.Signals) => void = () => undefined;
  let passTime: () => void = () => undefined;
  let end: () => void = () => undefined;
  let crash: (error: Error) => void = () => undefined;
  const clock: Clock = {
    now: () => 0,
    random: () => 0,
    after: (_, call) => {
      passTime = call;
      return () => undefined;
    },
  };
  const stopped = new Promise<void>((resolve, reject) => {
    end = resolve;
    crash = reject;
  });
  let stops = 0;
  const service: Daemon = {
    stopped,
    stop: () => {
      stops++;
      return stop();
    },
  };
  const running = runUntilStopped(config, logger, {
    clock,
    reload,
    onSignal: (listener) => (signal = listener),
    start: () => service,
  });
  return {
    running,
    stops: () => stops,
    signal: (name: NodeJS.Signals) => signal(name),
    passTime: () => passTime(),
    end: () => end(),
    crash: (error: Error) => crash(error),
  };
}

const never = () => new Promise<never>(() => undefined);
const turn = () => new Promise((resolve) => setImmediate(resolve));

describe('F112 run', () => {
  it('drains at the first signal and ends well', async () => {
    const { running, signal, stops } = stage(() => Promise.resolve('drained'));
    signal('SIGTERM');
    await expect(running).resolves.toBeUndefined();
    expect(stops()).toBe(1);
  });

  it('F9 says so when the drain was incomplete', async () => {
    const { running, signal } = stage(() => Promise.resolve('incomplete'));
    signal('SIGINT');
    await expect(running).rejects.toMatchObject({ code: 'WAYBILL_DRAIN_INCOMPLETE' });
  });

  it('says so also when the service ends before stop() has answered', async () => {
    const late = new Promise<'incomplete'>((resolve) => setImmediate(() => resolve('incomplete')));
    const { running, signal, end } = stage(() => late);
    signal('SIGTERM');
    end();
    await expect(running).rejects.toMatchObject({ code: 'WAYBILL_DRAIN_INCOMPLETE' });
  });

  it('gives up at a second signal', async () => {
    const { running, signal } = stage(never);
    signal('SIGTERM');
    signal('SIGTERM');
    await expect(running).rejects.toThrow('a second signal came');
  });

  it('gives up at the deadline', async () => {
    const { running, signal, passTime } = stage(never);
    signal('SIGTERM');
    await turn();
    passTime();
    await expect(running).rejects.toMatchObject({ code: 'WAYBILL_DRAIN_INCOMPLETE' });
  });

  it('F113 goes on at SIGHUP', async () => {
    const { running, signal, stops, end } = stage(() => Promise.resolve('drained'));
    signal('SIGHUP');
    await turn();
    expect(stops()).toBe(0);
    end();
    await running;
  });

  it('F113 takes up the log level at SIGHUP and names what needs a restart', async () => {
    const lines: unknown[] = [];
    const levels: string[] = [];
    const logger = {
      ...silentLogger,
      info: (fields: unknown) => lines.push(fields),
      setLevel: (level: string) => levels.push(level),
    };
    const changed = {
      ...config,
      log: { ...config.log, level: 'debug' as const },
      relay: { ...config.relay, name: 'b' },
    };
    const { running, signal, end } = stage(
      () => Promise.resolve('drained'),
      logger,
      () => changed,
    );
    signal('SIGHUP');
    end();
    await running;
    expect(levels).toEqual(['debug']);
    expect(lines).toContainEqual({ logLevel: 'debug', needsRestart: ['relay'] });
  });

  it('F113 keeps the old configuration at SIGHUP when the new one is wrong, and says what is wrong', async () => {
    const errors: unknown[] = [];
    const logger: AdjustableLogger = {
      ...silentLogger,
      error: (fields) => errors.push(fields['err']),
      setLevel: () => expect.unreachable(),
    };
    const wrong = new ConfigInvalid([{ at: 'log.level', problem: 'is none', mend: 'write one' }]);
    const { running, signal, end } = stage(
      () => Promise.resolve('drained'),
      logger,
      () => {
        throw wrong;
      },
    );
    signal('SIGHUP');
    end();
    await running;
    expect(errors).toEqual([wrong]);
  });

  it('fails as the service fails', async () => {
    const { running, crash } = stage(never);
    crash(new WaybillError('WAYBILL_IDENTITY_CHANGED', 'another cluster'));
    await expect(running).rejects.toMatchObject({ code: 'WAYBILL_IDENTITY_CHANGED' });
  });
});
