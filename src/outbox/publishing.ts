import { ConfirmTracker, type Outcome, type Return } from '../core/confirms.js';
import { WaybillError } from '../core/errors.js';
import type { Fault } from '../core/fault.js';
import type { Message } from '../core/message.js';
import { backoffMs, NACK_BACKOFF } from '../core/schedule.js';
import type { Window } from '../core/window.js';
import type { Clock } from '../runtime/clock.js';
import type { ExchangeChecks } from './exchange-checks.js';
import type { PublishChannel, PublishConnection, RelayCounters } from './ports.js';

/** What is published; identity is by object. */
export interface Publishable {
  message: Message | undefined;
  bytes: number;
  nacks: number;
}

export interface PublishingEvents<T> {
  onConfirmed(item: T): void;
  onReturned(item: T, reason: Return): void;
  /** The broker or the client refuses this message whenever it is sent. */
  onRefused(item: T, fault: Fault): void;
  /** Nacked so often that it should wait in the table. */
  onNackedTooOften(item: T): void;
  /** Publishing cannot go on: the session ends. */
  onFailed(error: Error): void;
  /** A channel died with unconfirmed messages, which are sent again one by one. */
  onChannelDied(error: Error, unconfirmed: number): void;
}

/** So many nacks in a row, about ten seconds, and a row waits in the table instead of in the window. */
const MAX_NACKS = 8;
/** What to do about a broker that is there and confirms nothing. */
export const STALL_HINT =
  'Look for an alarm (rabbitmq-diagnostics alarms) or a quorum queue without a leader (rabbitmq-queues quorum_status QUEUE).';
const WATCH_INTERVAL_MS = 500;

/**
 * Publishes in order and says what became of each message (O4, O5).
 *
 *   flowing ──channel died──▶ reopening ──▶ isolating ──suspects done──▶ flowing
 *                                 ▲             │ channel died: the one in flight is the culprit
 *                                 └─────────────┘
 *
 * When a channel dies, everything unconfirmed is unknown, not failed. The broker does not name the culprit, so the
 * unconfirmed are sent again one by one in their order; the one that kills the channel alone is refused. What is
 * published meanwhile waits behind them. When the connection dies, the session ends: the lock queue went with it.
 */
export class Publishing<T extends Publishable> {
  readonly #connection: PublishConnection;
  readonly #exchanges: ExchangeChecks;
  readonly #window: Window;
  readonly #clock: Clock;
  readonly #events: PublishingEvents<T>;
  readonly #counters: RelayCounters;
  readonly #confirmTimeoutMs: number;
  #mode: 'flowing' | 'reopening' | 'isolating' | 'closed' = 'reopening';
  #channel: PublishChannel | undefined;
  /** The books of the current channel; a late word from an older one finds that one's books empty. */
  #tracker = new ConfirmTracker<T>();
  /** Waiting to be sent, in order; the first `#suspects` of them go one by one. */
  #queue: T[] = [];
  #suspects = 0;
  /** Ends the wait for the word about a suspect. */
  #endAlone: (() => void) | undefined;
  #nacked: T[] = [];
  #cancelNackTimer: (() => void) | undefined;
  #cancelWatch: () => void = () => undefined;
  /** Since when the broker could have answered: a blocked connection suspends the confirm timeout. */
  #answerableSinceMs = 0;

  constructor(options: {
    connection: PublishConnection;
    exchanges: ExchangeChecks;
    window: Window;
    clock: Clock;
    confirmTimeoutMs: number;
    counters: RelayCounters;
    events: PublishingEvents<T>;
  }) {
    this.#connection = options.connection;
    this.#exchanges = options.exchanges;
    this.#window = options.window;
    this.#clock = options.clock;
    this.#events = options.events;
    this.#counters = options.counters;
    this.#confirmTimeoutMs = options.confirmTimeoutMs;
  }

  /** Opens the first channel. */
  async open(): Promise<void> {
    await this.#openChannel();
    if ((this.#mode as string) === 'closed') return;
    this.#mode = 'flowing';
    this.#watch();
  }

  /** Takes credit and publishes, or queues behind what must go first. The caller has seen that the window has room. */
  publish(item: T): void {
    this.#window.take(item.bytes);
    if (this.#mode === 'flowing') this.#send(item);
    else this.#queue.push(item);
  }

  /** Taken, and without a final word from the broker. */
  get outstanding(): number {
    return this.#tracker.size + this.#queue.length + this.#nacked.length;
  }

  async close(): Promise<void> {
    this.#mode = 'closed';
    this.#cancelWatch();
    this.#cancelNackTimer?.();
    this.#endAlone?.();
    await this.#channel?.close();
  }

  async #openChannel(): Promise<void> {
    const tracker = new ConfirmTracker<T>();
    const decide = (item: T, outcome: Outcome): void => this.#decided(item, outcome);
    let early: Error | undefined;
    const channel = await this.#connection.openChannel({
      onAck: (tag, multiple) => tracker.ack(tag, multiple, decide),
      onNack: (tag, multiple) => tracker.nack(tag, multiple, decide),
      onReturn: (messageId, reason) => void tracker.returned(messageId, reason),
      onClosed: (error) => {
        if (this.#tracker === tracker) this.#channelDied(tracker, error);
        else early = error;
      },
    });
    // Why: whoever waits for this channel would wait for a word that never comes.
    if (early) throw new WaybillError('WAYBILL_BROKER_UNAVAILABLE', 'a new channel closed at once', { cause: early });
    this.#channel = channel;
    this.#tracker = tracker;
  }

  #send(item: T): void {
    const { message } = item;
    if (!message || !this.#channel) throw new Error('publishing: nothing to send, or nowhere to');
    try {
      this.#channel.publish(message);
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error);
      // The client throws for a message that it cannot encode, and for a connection that is just closing.
      if (!this.#channel.isOpen || (error instanceof Error && error.name === 'IllegalOperationError')) {
        // Its close is on the way and sends this one after what is unconfirmed, before all that comes later (O5).
        this.#queue.unshift(item);
        if (this.#mode === 'isolating') this.#suspects += 1;
        if (this.#mode !== 'closed') this.#mode = 'reopening';
      } else this.#refuse(item, { fault: 'bad_property', text: `the client cannot encode it: ${text}` });
      return;
    }
    this.#counters.published += 1;
    this.#tracker.published(item, message.messageId, this.#clock.now());
  }

  #decided(item: T, outcome: Outcome): void {
    if (this.#mode === 'closed') return;
    if (outcome.kind === 'nacked') {
      this.#counters.nacked += 1;
      this.#nack(item);
    } else {
      this.#window.give(item.bytes);
      this.#window.widen();
      item.nacks = 0;
      if (outcome.kind === 'confirmed') {
        this.#counters.confirmed += 1;
        this.#events.onConfirmed(item);
      } else {
        this.#counters.returned += 1;
        this.#events.onReturned(item, outcome.reason);
      }
    }
    this.#endAlone?.();
  }

  #refuse(item: T, fault: Fault): void {
    this.#window.give(item.bytes);
    this.#events.onRefused(item, fault);
  }

  /** A nack is back-pressure (a full queue), not a fault: the message keeps its credit and goes again, later and later. */
  #nack(item: T): void {
    item.nacks += 1;
    if (item.nacks > MAX_NACKS) {
      this.#window.give(item.bytes);
      this.#events.onNackedTooOften(item);
      return;
    }
    this.#nacked.push(item);
    this.#cancelNackTimer ??= this.#clock.after(backoffMs(NACK_BACKOFF, item.nacks, this.#clock.random()), () => {
      this.#cancelNackTimer = undefined;
      const again = this.#nacked;
      this.#nacked = [];
      this.#counters.resent += again.length;
      for (const each of again) {
        if (this.#mode === 'flowing') this.#send(each);
        else this.#queue.push(each);
      }
    });
  }

  #channelDied(tracker: ConfirmTracker<T>, error: Error): void {
    if (this.#mode === 'closed') return;
    const unknown = tracker.lost();
    const alone = this.#mode === 'isolating' ? unknown[0] : undefined;
    this.#exchanges.forget();
    if (alone && isChannelException(error)) {
      unknown.shift();
      const fault: Fault = {
        fault: 'refused_by_broker',
        text: `RabbitMQ closed the channel over it: ${error.message}`,
      };
      // F82: the next row for it would close the channel for everybody again.
      if (isExchangeForbidden(error)) this.#exchanges.refuse(alone.message?.exchange ?? '', fault);
      this.#refuse(alone, fault);
    }
    this.#counters.resent += unknown.length;
    this.#queue = [...unknown, ...this.#queue];
    this.#suspects += unknown.length;
    this.#mode = 'reopening';
    this.#events.onChannelDied(error, unknown.length);
    this.#endAlone?.();
    this.#recover(tracker).catch((failure: unknown) => this.#events.onFailed(failure as Error));
  }

  /** Opens a channel and sends the suspects one by one. Ends early when that channel dies too: its own recovery goes on. */
  async #recover(dead: ConfirmTracker<T>): Promise<void> {
    if (this.#tracker !== dead) return;
    await this.#openChannel();
    const tracker = this.#tracker;
    const superseded = (): boolean => this.#tracker !== tracker || this.#mode !== 'isolating';
    if ((this.#mode as string) === 'closed') return;
    this.#mode = 'isolating';
    while (this.#suspects > 0) {
      const fault = await this.#exchanges.check(this.#queue[0]?.message?.exchange ?? '');
      if (superseded()) return;
      const item = this.#queue.shift();
      this.#suspects -= 1;
      if (!item) break;
      if (fault) {
        this.#refuse(item, fault);
        continue;
      }
      const decided = new Promise<void>((resolve) => (this.#endAlone = resolve));
      this.#send(item);
      if (tracker.size > 0) await decided;
      this.#endAlone = undefined;
      if (superseded()) return;
    }
    this.#mode = 'flowing';
    for (const item of this.#queue.splice(0)) {
      // A send may find the connection closing; the rest keeps its place behind it.
      if (this.#queue.length > 0) this.#queue.push(item);
      else this.#send(item);
    }
  }

  /** F87: a broker that says nothing for too long is given up, not just logged. */
  #watch(): void {
    this.#cancelWatch = this.#clock.after(WATCH_INTERVAL_MS, () => {
      const now = this.#clock.now();
      if (this.#connection.isBlocked) this.#answerableSinceMs = now;
      const oldest = this.#tracker.oldestAtMs;
      if (oldest !== undefined && now - Math.max(oldest, this.#answerableSinceMs) > this.#confirmTimeoutMs) {
        this.#events.onFailed(
          new WaybillError('WAYBILL_BROKER_STALLED', `no confirm for ${this.#confirmTimeoutMs} ms`, {
            hint: STALL_HINT,
          }),
        );
        return;
      }
      this.#watch();
    });
  }
}

/** The broker closed the channel over something that was sent on it; a lost connection gives no reply code. */
function isChannelException(error: Error): boolean {
  return 'code' in error && typeof error.code === 'number';
}

/** Permission on the exchange as a whole is missing; for a single topic of it the text says "access to topic". */
function isExchangeForbidden(error: Error): boolean {
  return 'code' in error && error.code === 403 && error.message.includes('access to exchange');
}
