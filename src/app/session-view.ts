import type { Step } from '../core/progress.js';
import type { Window } from '../core/window.js';
import type { OutOfReach } from '../outbox/doubtful.js';
import type { ExchangeChecks, UnusableExchange } from '../outbox/exchange-checks.js';
import type { RelayCounters } from '../outbox/ports.js';
import type { Publishing } from '../outbox/publishing.js';
import type { Pump } from '../outbox/pump.js';
import type { RefusedRows } from '../outbox/refused-rows.js';
import type { Settler } from '../outbox/settler.js';
import type { Work, Works } from '../outbox/work.js';
import { STATUS_INTERVAL_MS, type ReplicationStream } from '../postgres/stream.js';
import type { TableReader } from '../postgres/table-reader.js';
import type { Holdings, RelayPhase } from './relay-acquire.js';
import type { RelayChores } from './relay-chores.js';

/** What of a session is looked at from outside; nothing here is changed through it. */
export interface SessionParts {
  window: Window;
  works: Works;
  publishing: Publishing<Work>;
  settler: Settler;
  refused: RefusedRows;
  chores: RelayChores;
  table: TableReader;
  exchanges: ExchangeChecks;
  /** Undefined before the stream, and with `source: table`. */
  pump: Pump | undefined;
  stream: ReplicationStream | undefined;
}

/** As many as anybody reads. */
const MOST_EXCHANGES = 20;

/** A session at one moment. Sizes in bytes. */
export interface SessionLive {
  connections: Record<'database' | 'replication' | 'broker', boolean>;
  /** A memory or disk alarm keeps the broker from reading what is published. */
  brokerBlocked: boolean;
  inFlight: number;
  inFlightBytes: number;
  /** One message at a time, because the broker stalled before. */
  narrow: boolean;
  /** Rows taken up and not settled, those in flight among them. */
  unsettled: number;
  /** Exchanges that rows name and that cannot be published to; some of them, if there are many. */
  unusableExchanges: readonly UnusableExchange[];
  /** Rows whose fate cannot be stored, because of somebody else's lock or a constraint of the user's own. */
  outOfReach: OutOfReach;
}

/** Every row can be reached. */
export const ALL_IN_REACH: OutOfReach = {
  locked: 0,
  lockedForMs: 0,
  holders: [],
  refused: 0,
  waiting: 0,
  refusal: null,
  stopped: null,
};

/** Looks at a session from outside, at any moment of its life; costs nothing until it is asked. */
export class SessionView {
  readonly #holdings: Holdings;
  readonly #counters: RelayCounters;
  /** Set when everything is taken that a relay needs. */
  parts: (() => SessionParts) | undefined;

  constructor(holdings: Holdings, counters: RelayCounters) {
    this.#holdings = holdings;
    this.#counters = counters;
  }

  live(): SessionLive {
    const parts = this.parts?.();
    const { broker, clients } = this.#holdings;
    return {
      connections: {
        database: clients.length > 0,
        replication: parts?.stream !== undefined,
        broker: broker !== undefined,
      },
      brokerBlocked: broker?.isBlocked ?? false,
      inFlight: parts?.publishing.outstanding ?? 0,
      inFlightBytes: parts?.window.bytes ?? 0,
      narrow: parts?.window.isNarrow ?? false,
      unsettled: parts?.works.size ?? 0,
      unusableExchanges: parts?.exchanges.unusable(MOST_EXCHANGES) ?? [],
      outOfReach: parts ? outOfReach(parts) : ALL_IN_REACH,
    };
  }

  /** What must get on in this phase. A session that works shows a step forward in each that has something to do. */
  steps(phase: RelayPhase): Step[] {
    const parts = this.parts?.();
    if (!parts) return [];
    const { publishing, settler, table, pump, stream, chores } = parts;
    const { confirmed, returned, nacked, parked, published, settled, rebuilt } = this.#counters;
    const steps: Step[] = [
      { name: 'broker', busy: publishing.outstanding > 0, mark: confirmed + returned + nacked + parked },
      { name: 'settle', busy: !settler.isIdle, mark: settler.cycles },
      { name: 'table', busy: table.isBusy, mark: table.answered },
    ];
    if (phase === 'table-pass') steps.push({ name: 'pass', busy: true, mark: rebuilt + published + settled });
    if (pump) steps.push({ name: 'pump', busy: pump.isBusy, mark: pump.taken });
    if (stream) {
      // Asked at this interval, it answers within moments.
      const graceMs = STATUS_INTERVAL_MS;
      steps.push({ name: 'stream', busy: !stream.isPaused, mark: stream.lastHeardMs, graceMs });
    }
    if (phase === 'streaming' && !pump) {
      steps.push({ name: 'poll', busy: true, mark: chores.polls + published + settled });
    }
    return steps;
  }
}

/** Rows that were taken up, and those that wait in the table. */
function outOfReach({ settler, refused }: SessionParts): OutOfReach {
  const taken = settler.outOfReach;
  return {
    ...taken,
    refused: taken.refused + refused.size,
    waiting: refused.size,
    refusal: taken.refusal ?? refused.example,
    stopped: taken.stopped ?? refused.statements.first,
  };
}
