import { describe, expect, it } from 'vitest';
import type { RelayPhase } from '../../../src/app/relay-acquire.js';
import { startRelayService, type RelayService } from '../../../src/app/relay-service.js';
import type { SessionOptions } from '../../../src/app/relay-session.js';
import { loadConfig } from '../../../src/config/load.js';
import { WaybillError } from '../../../src/core/errors.js';
import { silentLogger } from '../../../src/telemetry/log.js';
import { ManualClock, turn } from '../../support/manual-clock.js';

const URLS = { WAYBILL_DATABASE_URL: 'postgres://u@localhost/shop', WAYBILL_BROKER_URL: 'amqp://127.0.0.1/' };

/** What a session does until it fails, by its number from 1. */
type Script = (session: SessionOptions, n: number) => Promise<'drained' | 'incomplete'>;

/** The supervisor over sessions that do as they are told. */
function supervise(script: Script): { clock: ManualClock; relay: RelayService } {
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
