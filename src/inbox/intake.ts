import { AckPrefix } from '../core/ack-prefix.js';
import { toInboundRow, type Delivery, type IntakeRules } from '../core/delivery.js';
import { consequenceOf } from '../core/error-policy.js';
import { isWaybillError, WaybillError } from '../core/errors.js';
import { Gathering, type GatheringLimits } from '../core/gathering.js';
import { backoffMs, type Backoff } from '../core/schedule.js';
import { pause, type Clock } from '../runtime/clock.js';
import { Wakeup } from '../runtime/signal.js';
import type { Gate } from './gate.js';
import type { Outcomes } from './outcomes.js';
import type { Persisting } from './persisting.js';
import { spanEnd, type MessageSpans } from './spans.js';
import type {
  Arrival,
  ConsumeChannel,
  ConsumeChannelEvents,
  ConsumerCounters,
  ConsumerLog,
  ReceivedRow,
} from './ports.js';

export interface IntakeOptions {
  rules: IntakeRules;
  limits: GatheringLimits;
  /** Whether arrivals are handled in the transaction that writes them. */
  applies: boolean;
  /** Whether the queue has one active consumer at a time, for the sake of an order. */
  byKey: boolean;
  persisting: Persisting;
  gate: Gate;
  outcomes: Outcomes;
  counters: ConsumerCounters;
  log: ConsumerLog;
  clock: Clock;
  spans?: MessageSpans | undefined;
  /** Most bytes of bodies that may be here unacknowledged. */
  mostHeldBytes: number;
  /** Rows are in the table that somebody has to handle. */
  onPending: () => void;
  /** Rows that must be handled by themselves. */
  onSuspects: (rows: { seq: bigint; attempt: number }[]) => void;
  /** Whether the database answers at this moment. */
  answers: () => Promise<boolean>;
  /** The prefetch to go back to once bodies are small again, where a smaller one is in use. */
  usualPrefetch?: number;
  /** Makes the arrival of a delivery, where that is not the usual way. */
  toArrival?: (delivery: Delivery) => Arrival;
}

/**
 * How a channel was left. `paused`: the breaker opened; `away`: the database was away for too long; `too-much`: the broker
 * handed out more bytes than may be here, so the prefetch is too large for these bodies (F110); `roomy`: the bodies are
 * small enough again for the usual one; `stopped`: told to. A channel that the broker closed is an error.
 */
export type IntakeEnd = 'paused' | 'away' | 'too-much' | 'roomy' | 'stopped';

/** Deliveries of one message after which it is handled by itself (fact 65, F125). */
const SUSPECT_DELIVERIES = 3;
/** So often a batch may fail with a database that answers before and after: then one of its messages is to blame (F125). */
const MOST_STRIKES = 3;
/**
 * How long a batch is held while the database is away. Why not longer: the broker's consumer timeout (30 min by default,
 * minutes on some services) would close the channel for us (F93); a closed channel costs every message a delivery.
 */
const HOLD_MS = 60_000;
const HOLD_BACKOFF: Backoff = { firstMs: 100, factor: 2, maxMs: 5_000, jitter: 0.3 };

/**
 * Takes deliveries of one channel into the inbox.
 *
 *   delivery -> gather -> row -> write (+ apply) -> commit -> acknowledge the settled prefix
 *
 * When it is left, the consumer is cancelled and what has arrived is written. Not so `byKey`: RabbitMQ makes the next
 * consumer active at the cancel, whatever is still out here, and that one's messages would come before ours (F96). So the
 * channel is closed after the batch that is being written, and the rest goes back to where it was in the queue.
 *
 * I1: nothing is acknowledged before the statement that wrote it has returned. I2: each delivery is settled once, on its
 * channel. I4: while the database is away the batch is held, and nothing is spent.
 *
 *   killed after the delivery, or while it is written  -> it comes again (F11, F12)
 *   killed after the commit, before the acknowledgement -> it comes again, is found and acknowledged (F13, F14)
 */
export class Intake {
  readonly #options: IntakeOptions;
  readonly #gathering: Gathering<Delivery>;
  readonly #prefix = new AckPrefix();
  readonly #wakeup = new Wakeup();
  /** Of what is not acknowledged. */
  #held = 0;
  #heldBytes = 0;
  /** Set by the channel's end. */
  #closedBy: Error | undefined;
  #channel: ConsumeChannel | undefined;
  /** The bytes that may be here were exceeded: how many messages of this size would fit. */
  #fitting: number | undefined;
  /** Of the latest arrivals, to see whether the usual prefetch would do. */
  #latest = 0;
  #latestBytes = 0;
  #isRoomy = false;

  constructor(options: IntakeOptions) {
    this.#options = options;
    this.#gathering = new Gathering(options.limits);
  }

  /** Runs until the channel is left; rejects with what ended it otherwise. One run for each object. */
  async run(
    open: (events: ConsumeChannelEvents) => Promise<ConsumeChannel>,
    stopping: AbortSignal,
  ): Promise<IntakeEnd> {
    const { clock, gate, byKey } = this.#options;
    const channel = await open({
      onDelivery: (delivery) => this.#arrived(delivery),
      onClosed: (error) => {
        this.#closedBy = error;
        this.#wakeup.wake();
      },
    });
    this.#channel = channel;
    const wake = (): void => this.#wakeup.wake();
    stopping.addEventListener('abort', wake, { once: true });
    const forget = gate.onChange(wake);
    let end: IntakeEnd | undefined;
    try {
      for (;;) {
        if (this.#closedBy) throw this.#closedBy;
        if (this.#fitting !== undefined) return 'too-much';
        if (!end && (stopping.aborted || gate.isOpen || this.#isRoomy)) {
          end = stopping.aborted ? 'stopped' : gate.isOpen ? 'paused' : 'roomy';
          if (byKey) return end;
          await channel.cancel();
          continue;
        }
        const dueAtMs = this.#gathering.dueAtMs();
        if (dueAtMs === undefined) {
          if (end) return end;
          await this.#wakeup.wait();
        } else if (dueAtMs > clock.now() && !end) await this.#wakeOrTime(dueAtMs - clock.now());
        else if ((await this.#take(channel, stopping)) === 'away') return 'away';
      }
    } finally {
      stopping.removeEventListener('abort', wake);
      forget();
      await channel.close();
    }
  }

  /** How many messages of the size of those that were here fit, for the next channel's prefetch. */
  get fitting(): number {
    return this.#fitting ?? 1;
  }

  #arrived(delivery: Delivery): void {
    if (this.#fitting !== undefined) return;
    this.#prefix.deliver(delivery.deliveryTag);
    this.#options.counters.received += 1;
    this.#held += 1;
    this.#heldBytes += delivery.body.length;
    const wasEmpty = this.#gathering.size === 0;
    this.#gathering.add(delivery, delivery.body.length, this.#options.clock.now());
    if (wasEmpty || (this.#gathering.dueAtMs() ?? Infinity) <= this.#options.clock.now()) this.#wakeup.wake();
    if (this.#heldBytes > this.#options.mostHeldBytes && this.#held > 1) this.#overflow();
    this.#measure(delivery.body.length);
  }

  /** At once, whatever is being written: what is not acknowledged comes again, to a channel that takes less. */
  #overflow(): void {
    const { mostHeldBytes } = this.#options;
    this.#fitting = Math.max(1, Math.floor((this.#held * mostHeldBytes) / this.#heldBytes / 2));
    this.#channel?.close().catch(() => undefined);
    this.#wakeup.wake();
  }

  #measure(bytes: number): void {
    const { usualPrefetch, mostHeldBytes } = this.#options;
    if (usualPrefetch === undefined || this.#isRoomy) return;
    this.#latest += 1;
    this.#latestBytes += bytes;
    if (this.#latest < usualPrefetch) return;
    this.#isRoomy = this.#latestBytes < mostHeldBytes / 2;
    this.#latest = this.#latestBytes = 0;
    if (this.#isRoomy) this.#wakeup.wake();
  }

  async #wakeOrTime(ms: number): Promise<void> {
    const cancel = this.#options.clock.after(ms, () => this.#wakeup.wake());
    await this.#wakeup.wait();
    cancel();
  }

  async #take(channel: ConsumeChannel, stopping: AbortSignal): Promise<'away' | undefined> {
    const deliveries = this.#gathering.take();
    const beganMs = this.#options.clock.now();
    const arrivals = deliveries.map((delivery) => this.#toArrival(delivery));
    const rows = await this.#write(arrivals, stopping);
    if (!rows) return 'away';
    // A channel that has died since delivers all of it again; its tags mean nothing on another (F19).
    const upTo = this.#prefix.settle(deliveries.map(({ deliveryTag }) => deliveryTag));
    if (upTo !== undefined) channel.ackUpTo(upTo);
    this.#held -= deliveries.length;
    for (const { body } of deliveries) this.#heldBytes -= body.length;
    this.#follow(arrivals, rows);
    this.#trace(arrivals, rows, this.#options.clock.now() - beganMs);
    return undefined;
  }

  #toArrival(delivery: Delivery): Arrival {
    const { rules, toArrival, applies } = this.#options;
    if (toArrival) return toArrival(delivery);
    const row = toInboundRow(delivery, rules);
    const arrival: Arrival = { row, properties: delivery.properties };
    if (applies && row.dead === null && deliveriesOf(delivery) >= SUSPECT_DELIVERIES) arrival.hold = true;
    return arrival;
  }

  /** Undefined: the database was away for too long, or is while we are to stop. */
  async #write(arrivals: readonly Arrival[], stopping: AbortSignal): Promise<ReceivedRow[] | undefined> {
    const { persisting, gate, clock, log, applies, answers } = this.#options;
    const sinceMs = clock.now();
    let strikes = 0;
    for (let attempt = 1; ; attempt += 1) {
      const ticket = applies && !gate.isOpen && strikes < MOST_STRIKES ? gate.admit() : undefined;
      try {
        const rows = await persisting.write(arrivals, ticket !== undefined);
        if (ticket) for (const row of rows) gate.settleRow(ticket, row);
        return rows;
      } catch (error) {
        if (this.#closedBy) throw this.#closedBy;
        if (isWaybillError(error, 'WAYBILL_HANDLER_BROKEN')) {
          gate.trip(error.message);
          continue;
        }
        if (!(error instanceof WaybillError) || consequenceOf(error.code) !== 'again') throw error;
        if (ticket && (await answers()) && (strikes += 1) === MOST_STRIKES) {
          log.warn(
            { err: error, rows: arrivals.length },
            'a batch fails again and again although the database answers; each of its messages is handled by itself',
          );
          for (const arrival of arrivals) if (arrival.row.dead === null) arrival.hold = true;
          continue;
        }
        const heldMs = clock.now() - sinceMs;
        const delayMs = backoffMs(HOLD_BACKOFF, attempt, clock.random());
        if (heldMs + delayMs > HOLD_MS || stopping.aborted) {
          log.error({ err: error, rows: arrivals.length }, 'the database is away; the messages go back to the queue');
          return undefined;
        }
        if (attempt === 1)
          log.warn({ err: error, rows: arrivals.length }, 'a batch is held until the database answers');
        await pause(clock, delayMs, stopping);
      }
    }
  }

  #follow(arrivals: readonly Arrival[], rows: readonly ReceivedRow[]): void {
    const { counters, outcomes, log } = this.#options;
    const suspects: { seq: bigint; attempt: number }[] = [];
    let pending = 0;
    rows.forEach((row, index) => {
      const arrival = arrivals[index];
      if (!arrival) return;
      const { messageId, type, key, dead } = arrival.row;
      if (row.outcome === 'duplicate') {
        counters.duplicates += 1;
        outcomes.all({ messageId, type, key, result: 'duplicate' });
        return;
      }
      if (row.outcome === 'conflict') {
        counters.conflicts += 1;
        log.error(
          { messageId, type, key, result: 'conflict' },
          'a message came again with another body; it is kept dead',
        );
      } else counters.inserted += 1;
      if (dead?.reason === 'malformed') counters.malformed += 1;
      outcomes.note({ messageId, type, key }, { ...row, error: row.error ?? dead?.text ?? null }, 1);
      if (row.status !== 'pending') return;
      if (arrival.hold) suspects.push({ seq: row.seq, attempt: row.attempt ?? 1 });
      else pending += 1;
    });
    if (pending > 0) this.#options.onPending();
    if (suspects.length > 0) this.#options.onSuspects(suspects);
  }

  /** The span of a message that was handled in the transaction that wrote it is that of its first attempt. */
  #trace(arrivals: readonly Arrival[], rows: readonly ReceivedRow[], agoMs: number): void {
    const { spans } = this.#options;
    if (!spans) return;
    rows.forEach((row, index) => {
      const arrival = arrivals[index];
      if (!arrival) return;
      const wasHandled = row.outcome === 'inserted' && row.verdict !== null;
      const span = spans.begin(wasHandled ? 'process' : 'receive', arrival.row, 1, agoMs);
      const error = row.error ?? arrival.row.dead?.text ?? null;
      span?.end(row.outcome === 'duplicate' ? { result: 'duplicate', error: undefined } : spanEnd({ ...row, error }));
    });
  }
}

/** How often the broker says it has delivered a message before; only quorum queues count. */
function deliveriesOf({ redelivered, properties }: Delivery): number {
  const count = properties.headers?.['x-delivery-count'];
  // A message that was moved here from another queue may bring that one's count along.
  return redelivered && typeof count === 'number' ? count : 0;
}
