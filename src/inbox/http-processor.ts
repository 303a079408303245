import type { Ticket } from '../core/breaker.js';
import { consequenceOf } from '../core/error-policy.js';
import { isWaybillError, WaybillError } from '../core/errors.js';
import { backoffMs, type Backoff } from '../core/schedule.js';
import type { Verdict } from '../core/verdict.js';
import { pause, type Clock } from '../runtime/clock.js';
import type { Gate } from './gate.js';
import type { Outcomes } from './outcomes.js';
import type { Claim, ConsumerLog, InboxMessage, InboxStore, MessageHandler, Outcome, Settlement } from './ports.js';
import { spanEnd, type MessageSpans, type SpanEnd } from './spans.js';
import type { Processor } from './worker.js';

const MARGIN_MS = 60_000;
/** Most bytes of bodies under way, as far as the sizes of those before tell; one message may be larger. */
const MOST_BYTES = 64 * 2 ** 20;
/** What is expected of a message before the first was seen: eight of them are claimed then. */
const EXPECTED_BYTES = MOST_BYTES / 8;
const SETTLE_BACKOFF: Backoff = { firstMs: 100, factor: 2, maxMs: 5_000, jitter: 0.3 };

export interface HttpProcessorOptions {
  store: Pick<InboxStore, 'settle'>;
  handler: MessageHandler & { concurrency: number; longestMs: number };
  /** The consumer's schedule: the delay after each attempt, the last for all further ones. */
  delaysMs: readonly number[];
  gate: Gate;
  outcomes: Outcomes;
  clock: Clock;
  log: ConsumerLog;
  spans?: MessageSpans | undefined;
  /** Aborts when nothing may be waited for any longer. */
  giveUp: AbortSignal;
  /** There is room again. */
  onRoom: () => void;
  onHandled?: (seconds: number) => void;
}

/** Hands rows to an application over HTTP, several at once; each is settled when its answer is there. */
export class HttpProcessor implements Processor {
  readonly #options: HttpProcessorOptions;
  readonly #running = new Set<Promise<void>>();
  /** One for each message under way: a signal takes a few listeners only. */
  readonly #cuts = new Set<AbortController>();
  readonly gatherMs = 0;
  /** Of the bodies under way. */
  #bytes = 0;
  /** Of one body, from the latest claims; large ones are remembered for some claims. */
  #expectedBytes = EXPECTED_BYTES;
  /** Answers that cannot be written down because the database is away. */
  #unwritten = 0;

  constructor(options: HttpProcessorOptions) {
    this.#options = options;
    const cut = (): void => this.#cuts.forEach((each) => each.abort());
    options.giveUp.addEventListener('abort', cut, { once: true });
  }

  /** As many as fit into memory (F110). None while answers cannot be written down: a claim would count rows as abandoned whose answer is here (I4). */
  room(): number {
    if (this.#unwritten > 0) return 0;
    const fitting = Math.floor((MOST_BYTES - this.#bytes) / this.#expectedBytes);
    const free = Math.min(this.#options.handler.concurrency - this.#running.size, fitting);
    return Math.max(this.#running.size === 0 ? 1 : 0, free);
  }

  leaseMs(): number {
    return this.#options.handler.longestMs + MARGIN_MS;
  }

  async idle(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running);
  }

  process(claim: Claim, tickets: Ticket[]): Promise<void> {
    const spare = [...tickets];
    const claimedBytes = claim.messages.reduce((sum, { body }) => sum + body.length, 0);
    this.#expectedBytes = Math.max(1, claimedBytes / claim.messages.length, this.#expectedBytes / 2);
    this.#bytes += claimedBytes;
    for (const message of claim.messages) {
      const handling = this.#handle(message, claim.token, spare.shift())
        .catch((error: unknown) => this.#options.log.error({ err: error }, 'a message could not be handled'))
        .finally(() => {
          this.#running.delete(handling);
          this.#bytes -= message.body.length;
          this.#options.onRoom();
        });
      this.#running.add(handling);
    }
    return Promise.resolve();
  }

  async #handle(message: InboxMessage, token: string, ticket: Ticket | undefined): Promise<void> {
    const span = this.#options.spans?.begin('process', message, message.attempt, 0);
    let end: SpanEnd = { result: 'unknown', error: { type: 'unknown', text: 'the answer could not be written down' } };
    try {
      const outcome = await this.#attempt({ ...message, ...span?.context }, token, ticket);
      if (!outcome) return;
      end = spanEnd(outcome);
      this.#options.outcomes.note(message, outcome, message.attempt);
    } finally {
      span?.end(end);
    }
  }

  async #attempt(message: InboxMessage, token: string, ticket: Ticket | undefined): Promise<Outcome | undefined> {
    const { handler, gate, clock, giveUp, onHandled } = this.#options;
    const cut = new AbortController();
    this.#cuts.add(cut);
    if (giveUp.aborted) cut.abort();
    const beganMs = clock.now();
    let verdict: Settlement;
    try {
      const said = this.#notSooner(await handler.handle(message, cut.signal), message.attempt);
      onHandled?.((clock.now() - beganMs) / 1_000);
      const spends = ticket ? gate.settle(ticket, message.seq, said) : false;
      // While the breaker is closed a broken attempt is spent, because one message that gets a 404 again and again must
      // come to an end; it is refunded if the breaker opens.
      verdict = said.kind === 'broken' && !spends ? { kind: 'release', error: said.error } : said;
    } catch (error) {
      if (ticket) gate.withdraw(ticket);
      if (!isWaybillError(error, 'WAYBILL_STOPPED')) {
        this.#cuts.delete(cut);
        throw error;
      }
      // Whoever runs next tries it; the application may have seen it, which its idempotency key is for.
      verdict = { kind: 'release', error: 'the service stopped before there was an answer' };
    }
    const writing = this.#settle(token, message.seq, verdict, cut.signal).finally(() => this.#cuts.delete(cut));
    if (verdict.kind === 'broken') gate.whileWriting(writing);
    const [outcome] = await writing;
    return outcome;
  }

  /**
   * An answer may ask for a longer delay than the schedule has, not for a shorter one: what is there while an application
   * is replaced says "in a second", and all attempts would be over before it is back.
   */
  #notSooner(said: Verdict, attempt: number): Verdict {
    const { delaysMs, clock } = this.#options;
    if (said.kind !== 'retry' || said.retryInMs === undefined) return said;
    const delayMs = delaysMs[Math.min(attempt, delaysMs.length) - 1] ?? 0;
    return { ...said, retryInMs: Math.max(said.retryInMs, delayMs * (1 + clock.random())) };
  }

  /** The effect is there; the word on it must not be lost because the database is away for a moment. */
  async #settle(token: string, seq: bigint, verdict: Settlement, giveUp: AbortSignal) {
    const { store, clock, log } = this.#options;
    let unwritten = 0;
    try {
      for (let attempt = 1; ; attempt += 1) {
        try {
          return await store.settle(token, [{ seq, verdict }]);
        } catch (error) {
          const passes = error instanceof WaybillError && consequenceOf(error.code) === 'again';
          if (!passes || giveUp.aborted) throw error;
          if (attempt === 1) log.warn({ err: error, seq }, 'an answer cannot be written down; trying again');
          if (unwritten === 0 && isWaybillError(error, 'WAYBILL_DATABASE_UNAVAILABLE')) {
            unwritten = 1;
            this.#unwritten += 1;
          }
          await pause(clock, backoffMs(SETTLE_BACKOFF, attempt, clock.random()), giveUp);
        }
      }
    } finally {
      this.#unwritten -= unwritten;
    }
  }
}
