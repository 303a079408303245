import type { ConsumerCounters, ConsumerLog, Outcome } from './ports.js';

/** What is logged of a message. */
export interface Described {
  messageId: string;
  type: string | null;
  key: string | null;
}

/** What follows from outcomes, besides counting and logging. */
export interface Followers {
  /** A row waits and is due again in so many milliseconds. */
  onWaiting(row: { seq: bigint; attempt: number; dueInMs: number }): void;
  onDead(): void;
  /** The next message of a key may go. */
  onReleased(): void;
  /** A message waits behind others of its key. */
  onBlocked(): void;
}

/** Counts and logs what becomes of messages; each failure once, with ids and never with bodies. */
export class Outcomes {
  readonly #counters: ConsumerCounters;
  readonly #log: ConsumerLog;
  readonly #logsAll: boolean;
  readonly #followers: Followers;
  readonly #isGivenBack: (seq: bigint) => boolean;

  constructor(options: {
    counters: ConsumerCounters;
    log: ConsumerLog;
    logsAll: boolean;
    followers: Followers;
    /** Whether the attempt at this row is about to be taken back. */
    isGivenBack: (seq: bigint) => boolean;
  }) {
    this.#counters = options.counters;
    this.#log = options.log;
    this.#logsAll = options.logsAll;
    this.#followers = options.followers;
    this.#isGivenBack = options.isGivenBack;
  }

  note(message: Described, outcome: Outcome, attempt: number): void {
    const { counters, fields } = { counters: this.#counters, fields: describe(message, outcome, attempt) };
    if (outcome.verdict === 'broken' && this.#isGivenBack(outcome.seq)) {
      counters.broken += 1;
      if (outcome.hasReleased) this.#followers.onReleased();
      this.#log.debug({ ...fields, result: 'released' }, 'a message was given back');
      return;
    }
    if (outcome.status === 'waiting' && outcome.dueInMs !== null && outcome.attempt !== null) {
      this.#followers.onWaiting({ seq: outcome.seq, attempt: outcome.attempt, dueInMs: outcome.dueInMs });
    }
    if (outcome.hasReleased) this.#followers.onReleased();
    if (outcome.status === 'blocked') this.#followers.onBlocked();
    switch (outcome.verdict) {
      case null:
        break;
      case 'release':
        this.#log.debug({ ...fields, result: 'released' }, 'a message was given back');
        return;
      case 'lost':
        counters.lost += 1;
        this.#log.warn({ ...fields, result: 'lost' }, 'the lease was lost; somebody else has the message');
        return;
      case 'done':
        counters.applied += 1;
        this.all({ ...fields, result: 'applied' });
        return;
      case 'retry':
        counters.retried += 1;
        break;
      case 'not-yet':
        counters.deferred += 1;
        break;
      case 'broken':
        counters.broken += 1;
        break;
      case 'never':
        break;
    }
    if (outcome.status === 'dead') {
      counters.dead += 1;
      this.#log.error({ ...fields, reason: outcome.deadReason, result: 'dead' }, 'a message is dead');
      this.#followers.onDead();
    } else if (outcome.verdict !== null) {
      const result = outcome.verdict === 'not-yet' ? 'deferred' : 'retry';
      this.#log.warn({ ...fields, retryInMs: outcome.dueInMs, result }, 'a message is tried again');
    }
  }

  /** A line for a message with which nothing is wrong, where every message has one. */
  all(fields: object): void {
    if (this.#logsAll) this.#log.info(fields, 'message');
  }
}

function describe({ messageId, type, key }: Described, outcome: Outcome, attempt: number): object {
  return { messageId, key, type, attempt, ...(outcome.error === null ? {} : { error: outcome.error }) };
}
