import { ERROR_CODES, isWaybillError } from '../core/errors.js';
import { Progress, type Stall } from '../core/progress.js';
import type { PartHealth } from '../admin/health.js';
import type { RelayPhase } from './relay-acquire.js';
import type { OutOfReach } from '../outbox/doubtful.js';
import { outOfReachTexts } from './out-of-reach.js';
import { FRUITLESS_LIMIT, type RelayLook } from './relay-service.js';

/** In these the relay holds everything and publishes. */
export const ACTIVE: ReadonlySet<RelayPhase> = new Set(['table-pass', 'streaming', 'draining']);

const HANGS: Readonly<Record<string, string>> = {
  broker: 'RabbitMQ has answered nothing about messages in flight',
  settle: 'PostgreSQL has not stored the fate of published rows',
  table: 'PostgreSQL has not answered a read of the table',
  pass: 'the table pass has not got on (an open transaction holds it up, or the table is locked)',
  pump: 'rows have arrived and none was handled',
  stream: 'the replication stream is silent, although the server was asked for a word',
  poll: 'the table was not polled',
};

/**
 * Whether the relay is ready: it stands by for another one, or it holds everything and each of its steps that has
 * something to do gets on (F121). Nothing is taken on trust: a part that hangs without an error makes it unready.
 */
export class RelayHealth {
  readonly #progress = new Progress();
  readonly #staleAfterMs: number;

  constructor(staleAfterMs: number) {
    this.#staleAfterMs = staleAfterMs;
  }

  /** Looks at the relay; call it at least every few seconds, because a hang is seen by comparing two looks. */
  check(look: RelayLook, nowMs: number): PartHealth {
    const { phase, session, lastError, stopping, fruitless } = look;
    const stall = this.#progress.look(session?.steps(phase) ?? [], nowMs, this.#staleAfterMs);
    const live = session?.live();
    // Each session may look well until its first rows are to be settled.
    const stuck =
      fruitless >= FRUITLESS_LIMIT && lastError
        ? `${fruitless} sessions have ended since rows were settled last: ${meaningOf(lastError)}`
        : null;
    const reason = stopping
      ? 'it is stopping'
      : phase === 'standby'
        ? stuck
        : !ACTIVE.has(phase)
          ? lastError
            ? `it cannot work: ${meaningOf(lastError)}`
            : `it is ${phase}`
          : live?.brokerBlocked
            ? 'RabbitMQ blocks publishing (memory or disk alarm)'
            : stall
              ? hanging(stall, live?.outOfReach)
              : stuck;
    return {
      name: 'relay',
      ready: reason === null,
      reason,
      detail: {
        phase,
        forSeconds: Math.round((nowMs - look.phaseSinceMs) / 1000),
        connections: live?.connections ?? { database: false, replication: false, broker: false },
        brokerBlocked: live?.brokerBlocked ?? false,
        // Detail alone: rows for them are set aside, and the others go on.
        unusableExchanges: live?.unusableExchanges ?? [],
        lockedRows: live?.outOfReach.locked ?? 0,
        refusedRows: live?.outOfReach.refused ?? 0,
        error: isWaybillError(lastError) ? lastError.code : lastError ? 'unexpected' : null,
      },
    };
  }
}

/** The message of an error may name addresses; its code says enough here. */
function meaningOf(error: Error): string {
  return isWaybillError(error) ? ERROR_CODES[error.code] : 'an unexpected error, which the log tells';
}

/** Rows out of reach are kept in memory up to a limit; past it nothing else is taken up. */
const CROWDED: ReadonlySet<string> = new Set(['pump', 'pass', 'poll']);

function hanging({ step, forMs }: Stall, outOfReach: OutOfReach | undefined): string {
  const what = `${HANGS[step] ?? step} for ${Math.round(forMs / 1000)} s`;
  const [first] = outOfReach ? outOfReachTexts(outOfReach) : [];
  // What hangs in the settling is not because of single rows.
  const isWhy = CROWDED.has(step) || (step === 'settle' && outOfReach?.stopped);
  return isWhy && first ? `${what}: ${first.what}` : what;
}
