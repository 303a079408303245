import { describe, expect, it } from 'vitest';
import { RelayHealth } from '../../../src/app/relay-health.js';
import type { RelayPhase } from '../../../src/app/relay-acquire.js';
import { startRelayService, type RelayService } from '../../../src/app/relay-service.js';
import type { SessionOptions } from '../../../src/app/relay-session.js';
import { loadConfig } from '../../../src/config/load.js';
import { WaybillError } from '../../../src/core/errors.js';
import { pause } from '../../../src/runtime/clock.js';
import { silentLogger } from '../../../src/telemetry/log.js';
import { ManualClock, turn } from '../../support/manual-clock.js';

const URLS = { WAYBILL_DATABASE_URL: 'postgres://u@localhost/shop', WAYBILL_BROKER_URL: 'amqp://127.0.0.1/' };

/** What a session does until it fails, by its number from 1. */
type Script = (session: SessionOptions, n: number) => Promise<'drained' | 'incomplete'>;

interface Supervised {
  clock: ManualClock;
  relay: RelayService;
}

/** The supervisor over sessions that do as they are told. */
function supervise(script: Script): Supervised {
  const clock = new ManualClock();
  const config = loadConfig({ environment: URLS, readFile: () => '' });
  let n = 0;
  const relay = startRelayService(config, silentLogger, {
    clock,
    runSession: (session) => script(session, (n += 1)),
  });
  return { clock, relay };
}

const enter = (session: SessionOptions, ...phases: RelayPhase[]): void => {
  for (const phase of phases) session.onPhase(phase);
};

function fullDisk(): WaybillError {
  return new WaybillError('WAYBILL_DATABASE_UNAVAILABLE', 'settling rows: no space left (SQLSTATE 53100)');
}

/** A session that waits until the relay is told to stop, before it has begun to work. */
function untilStopped({ stopping }: SessionOptions): Promise<never> {
  return new Promise((_, reject) => {
    const stop = (): void => reject(new WaybillError('WAYBILL_STOPPED', 'stopping'));
    if (stopping.aborted) stop();
    else stopping.addEventListener('abort', stop, { once: true });
  });
}

describe('F9, F112: a stop after a session that left rows in flight', () => {
  const leaves =
    (rows: number): Script =>
    async (session, n) => {
      enter(session, 'connecting');
      if (n > 1) return untilStopped(session);
      enter(session, 'streaming');
      await turn();
      session.onUnsettled(rows);
      throw fullDisk();
    };

  it.each([
    [2_000, 'incomplete'],
    [0, 'drained'],
  ])('%i rows, in the pause before the next session: %s', async (rows, word) => {
    const { relay } = supervise(leaves(rows));
    await turn();
    await turn();
    expect(relay.look()).toMatchObject({ phase: 'connecting', sessions: 1 });
    expect(await relay.stop()).toBe(word);
  });

  it.each([
    [2_000, 'incomplete'],
    [0, 'drained'],
  ])('%i rows, while the next session connects: %s', async (rows, word) => {
    const { relay, clock } = supervise(leaves(rows));
    await turn();
    await turn();
    clock.advance(1_000);
    await turn();
    expect(relay.look()).toMatchObject({ phase: 'connecting', sessions: 2 });
    expect(await relay.stop()).toBe(word);
  });
});

describe('an error that comes in each session after it has begun to stream', () => {
  const health = new RelayHealth(10_000);

  /** Lets the sessions run for so long, as seen from outside each 50 ms, and gives when each began, in milliseconds. */
  async function watch({ clock, relay }: Supervised, forMs: number): Promise<{ begun: number[]; unready: number }> {
    const begun: number[] = [];
    let unready = 0;
    const endMs = clock.now() + forMs;
    while (clock.now() < endMs) {
      for (let n = 0; n < 4; n += 1) await turn();
      const look = relay.look();
      if (look.sessions > begun.length) begun.push(clock.now());
      if (!health.check(look, clock.now()).ready) unready += 1;
      clock.advance(50);
    }
    return { begun, unready };
  }

  /** Streams for so long, at the clock's time, and fails. */
  async function fails(session: SessionOptions, afterMs: number): Promise<never> {
    enter(session, 'connecting', 'starting', 'streaming');
    await pause(session.clock, afterMs);
    session.onUnsettled(2_000);
    throw fullDisk();
  }

  it('the pauses grow, it is not ready from the second on, and the error stays to be seen', async () => {
    const supervised = supervise((session) => fails(session, 200));
    const { begun, unready } = await watch(supervised, 60_000);
    const pauses = begun.slice(1).map((atMs, n) => atMs - (begun[n] ?? 0));
    expect(begun.length).toBeLessThan(12);
    expect(pauses.at(-1)).toBeGreaterThan(10_000);
    expect(unready).toBeGreaterThan(1_180);
    expect(supervised.relay.look().lastError).toMatchObject({ code: 'WAYBILL_DATABASE_UNAVAILABLE' });
    expect(await supervised.relay.stop()).toBe('incomplete');
  });

  it('one that also stands by for a moment, because its own slot is not free yet, counts on', async () => {
    const supervised = supervise((session) => {
      enter(session, 'connecting', 'standby');
      return fails(session, 200);
    });
    expect((await watch(supervised, 60_000)).begun.length).toBeLessThan(12);
    await supervised.relay.stop();
  });

  it.each([
    [
      'settles rows',
      (session: SessionOptions): void => {
        session.onProgress();
      },
      0,
    ],
    ['has streamed for 5 s with nothing to settle', (): void => undefined, 6_000],
  ])('it is over as soon as a session %s', async (_, gets, waitMs) => {
    const supervised = supervise(async (session, n) => {
      if (n < 5) return fails(session, 0);
      enter(session, 'connecting', 'streaming');
      gets(session);
      return untilStopped(session);
    });
    await watch(supervised, 3_000 + waitMs);
    expect(supervised.relay.look()).toMatchObject({ sessions: 5, fruitless: 0, lastError: undefined });
    expect(health.check(supervised.relay.look(), supervised.clock.now()).ready).toBe(true);
    expect(await supervised.relay.stop()).toBe('drained');
  });

  it('while the fifth has not shown that it gets on, it is not ready, and says why', async () => {
    const supervised = supervise(async (session, n) => {
      if (n < 5) return fails(session, 0);
      enter(session, 'connecting', 'streaming');
      return untilStopped(session);
    });
    await watch(supervised, 3_000);
    expect(health.check(supervised.relay.look(), supervised.clock.now())).toMatchObject({
      ready: false,
      reason: expect.stringMatching(/^4 sessions have ended since rows were settled last/) as string,
    });
    expect(await supervised.relay.stop()).toBe('incomplete');
  });
});
