import type { Ticket } from '../core/breaker.js';
import { consequenceOf } from '../core/error-policy.js';
import { isWaybillError, WaybillError } from '../core/errors.js';
import { pause, type Clock } from '../runtime/clock.js';
import type { Gate } from './gate.js';
import type { Outcomes } from './outcomes.js';
import type { Claim, ConsumerCounters, InboxMessage, InboxStore, Outcome } from './ports.js';
import { spanEnd, type MessageSpans } from './spans.js';
import type { Processor } from './worker.js';

/** Why: more subtransactions than 64 in one transaction slow every snapshot of the server (fact 28). */
export const MOST_SUBTRANSACTIONS = 60;
const MARGIN_MS = 30_000;
const MOST_REPEATS = 10;
const REPEAT_MS = 20;
const GATHER_MS = 50;
/** The shortest that can be asked for. */
const ENDED_LEASE_MS = 1_000;
const MOST_STRUCK = 10_000;

export interface SqlProcessorOptions {
  store: Pick<InboxStore, 'apply' | 'settle' | 'extend'>;
  gate: Gate;
  outcomes: Outcomes;
  counters: ConsumerCounters;
  clock: Clock;
  spans?: MessageSpans | undefined;
  /** statement_timeout of the connection. */
  timeoutMs: number;
  tooSlow: string;
  /** Rows that are to be handled by themselves. */
  onAlone: (rows: { seq: bigint; attempt: number }[]) => void;
}

/** Has rows handled by a function in the database: a batch in one transaction, each row in a subtransaction of its own. */
export class SqlProcessor implements Processor {
  readonly #options: SqlProcessorOptions;
  /** Claims that an error left behind. */
  readonly #left: { claim: Claim; error: string; counts: boolean }[] = [];
  /** Rows whose claim was lost with the connection before: by chance, or because of what is in them. */
  readonly #struck = new Set<bigint>();

  constructor(options: SqlProcessorOptions) {
    this.#options = options;
  }

  readonly gatherMs = GATHER_MS;

  room(): number {
    return MOST_SUBTRANSACTIONS;
  }

  /** One statement, whatever the number of rows; where they go one by one it is prolonged before each. */
  leaseMs(): number {
    return 2 * this.#options.timeoutMs + MARGIN_MS;
  }

  /**
   * What was claimed when the database went away goes back as it was, rather than wait for the end of its lease and count
   * as abandoned. A row that was settled all the same has another token by then, and stays as it is. The rows are then
   * handled by themselves; the one that loses its connection again is to blame, and each further time counts (F125).
   */
  async recover(): Promise<void> {
    for (let left = this.#left[0]; left; left = this.#left[0]) {
      const { claim, error: why, counts } = left;
      const verdict = { kind: 'release', error: why } as const;
      const seqs = claim.messages.map(({ seq }) => seq);
      try {
        if (counts) await this.#options.store.extend(seqs, claim.token, ENDED_LEASE_MS);
        else
          await this.#options.store.settle(
            claim.token,
            seqs.map((seq) => ({ seq, verdict })),
          );
      } catch (error) {
        // What is refused for another reason is refused again; the lease runs out.
        if (!isTransient(error)) this.#left.shift();
        throw error;
      }
      this.#left.shift();
      if (!counts && seqs.some((seq) => this.#struck.has(seq))) this.#options.onAlone(claim.messages);
    }
  }

  #lost(claim: Claim): void {
    const [only, ...others] = claim.messages;
    const counts = only !== undefined && others.length === 0 && this.#struck.has(only.seq);
    if (this.#struck.size > MOST_STRUCK) this.#struck.clear();
    for (const { seq } of claim.messages) this.#struck.add(seq);
    this.#left.push({ claim, error: 'the connection was lost while it was handled', counts });
  }

  idle(): Promise<void> {
    return Promise.resolve();
  }

  async process(claim: Claim, tickets: Ticket[]): Promise<void> {
    const { gate, outcomes, spans, clock } = this.#options;
    const beganMs = clock.now();
    const trace = (message: InboxMessage, outcome: Omit<Outcome, 'seq'>): void =>
      spans?.begin('process', message, message.attempt, clock.now() - beganMs)?.end(spanEnd(outcome));
    try {
      const rows = await this.#apply(claim.messages, claim.token);
      const bySeq = new Map(claim.messages.map((message) => [message.seq, message]));
      for (const row of rows) {
        this.#struck.delete(row.seq);
        const ticket = tickets.shift();
        if (ticket) gate.settleRow(ticket, row);
      }
      // Why not in one go: the last row may show that the first is to be given back.
      for (const row of rows) {
        const message = bySeq.get(row.seq);
        if (!message) continue;
        outcomes.note(message, row, message.attempt);
        trace(message, row);
      }
    } catch (error) {
      if (!isWaybillError(error, 'WAYBILL_HANDLER_BROKEN')) {
        this.#lost(claim);
        throw error;
      }
      gate.trip(error.message, tickets[0]);
      for (const message of claim.messages) trace(message, brokenOutcome(error.message));
      // They go back as they were: nothing of them was tried.
      this.#left.push({ claim, error: error.message, counts: false });
      await this.recover();
    } finally {
      for (const ticket of tickets) gate.withdraw(ticket);
    }
  }

  async #apply(messages: readonly InboxMessage[], token: string): Promise<Outcome[]> {
    const { store, tooSlow, clock, counters } = this.#options;
    const seqs = messages.map(({ seq }) => seq);
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await store.apply(seqs, token);
      } catch (error) {
        if (isWaybillError(error, 'WAYBILL_TRANSACTION_REPEATED') && attempt < MOST_REPEATS) {
          counters.repeated += 1;
          await pause(clock, REPEAT_MS * attempt * (1 + clock.random()));
          continue;
        }
        const [only, ...others] = messages;
        if (!only || !isWaybillError(error, 'WAYBILL_STATEMENT_TOO_SLOW')) throw error;
        if (others.length === 0) {
          return await store.settle(token, [{ seq: only.seq, verdict: { kind: 'retry', error: tooSlow } }]);
        }
        const results: Outcome[] = [];
        for (const [index, message] of messages.entries()) {
          await store.extend(seqs.slice(index), token, this.leaseMs());
          results.push(...(await this.#apply([message], token)));
        }
        return results;
      }
    }
  }
}

/** Of a message whose handler is broken for all of them. */
function brokenOutcome(error: string): Omit<Outcome, 'seq'> {
  const nothing = { attempt: null, dueInMs: null, deadReason: null, hasReleased: false };
  return { ...nothing, status: 'running', verdict: 'broken', error };
}

function isTransient(error: unknown): boolean {
  return error instanceof WaybillError && consequenceOf(error.code) === 'again';
}
