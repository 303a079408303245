import { ConfirmTracker, type Outcome, type Return } from '../core/confirms.js';
import { WaybillError } from '../core/errors.js';
import type { Fault } from '../core/fault.js';
import type { Message } from '../core/message.js';
import { backoffMs, NACK_BACKOFF } from '../core/schedule.js';
import type { Suspects } from '../core/suspects.js';
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
/** With `ordering: strict`, where the key waits: about a second. */
export const STRICT_MAX_NACKS = 4;
/** What to do about a broker that is there and confirms nothing. */
export const STALL_HINT =
  'Look for an alarm (rabbitmq-diagnostics alarms) or a quorum queue without a leader (rabbitmq-queues quorum_status QUEUE).';
const WATCH_INTERVAL_MS = 500;

/**
 * Publishes in order and says what became of each message (O4, O5).
 *
 *   flowing ──channel died──▶ reopening ──▶ isolating ──queue empty──▶ flowing
 *      │                          ▲           │   ▲ channel died: the one in flight is the culprit
 *      │                          └───────────┘   │
 *      └──────────a suspect comes─────────────────┘
 *
 * When a channel dies, everything unconfirmed is unknown, not failed. The broker does not name the culprit, so the
 * unconfirmed are sent again one by one in their order; the one that kills the channel alone is refused. What is
 * published meanwhile waits behind them. When the connection dies, the session ends: the lock queue went with it. If the
 * broker closed it over something that was sent, those in flight are suspects of the next sessions, and go alone there.
 */
export class Publishing<T extends Publishable> {
  readonly #connection: PublishConnection;
  readonly #exchanges: ExchangeChecks;
  readonly #window: Window;
  readonly #clock: Clock;
  readonly #events: PublishingEvents<T>;
  readonly #counters: RelayCounters;
  readonly #confirmTimeoutMs: number;
  readonly #maxNacks: number;
  #mode: 'flowing' | 'reopening' | 'isolating' | 'closed' = 'reopening';
  #channel: PublishChannel | undefined;
  /** The books of the current channel; a late word from an older one finds that one's books empty. */
  #tracker = new ConfirmTracker<T>();
  /** Waiting to be sent, in order; the first `#doubted` of them go one by one, and so do suspects. */
  #queue: T[] = [];
  #doubted = 0;
  /** Sent when nothing else was in flight, and nothing else is sent before the word about it. */
  #alone: T | undefined;
  /** Ends the wait for the broker's next word. */
  #endWait: (() => void) | undefined;
  readonly #suspects: Suspects;
  #lost: { messageIds: string[]; alone: boolean } = { messageIds: [], alone: false };
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
    /** So many in a row, and the message is handed over as nacked too often. */
    maxNacks?: number;
    counters: RelayCounters;
    /** Outlives the session. */
    suspects: Suspects;
    events: PublishingEvents<T>;
  }) {
    this.#connection = options.connection;
    this.#exchanges = options.exchanges;
    this.#window = options.window;
    this.#clock = options.clock;
    this.#events = options.events;
    this.#counters = options.counters;
    this.#suspects = options.suspects;
    this.#confirmTimeoutMs = options.confirmTimeoutMs;
    this.#maxNacks = options.maxNacks ?? MAX_NACKS;
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
    this.#sendInTurn(item);
  }

  /** Taken, and without a final word from the broker. */
  get outstanding(): number {
    return this.#tracker.size + this.#queue.length + this.#nacked.length;
  }

  /** What was on the wire when a channel died last, and whether it had gone alone. */
  get lost(): { readonly messageIds: readonly string[]; readonly alone: boolean } {
    return this.#lost;
  }

  /** Ends with the handshake of the channel. */
  async close(): Promise<void> {
    this.abandon();
    await this.#channel?.close();
  }

  /** Ends at once; for when the connection is gone. */
  abandon(): void {
    this.#mode = 'closed';
    this.#cancelWatch();
    this.#cancelNackTimer?.();
    this.#endWait?.();
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

  #sendInTurn(item: T): void {
    if (this.#mode === 'flowing' && !this.#suspects.has(idOf(item))) {
      this.#send(item);
      return;
    }
    this.#queue.push(item);
    if (this.#mode === 'flowing') this.#isolate().catch((failure: unknown) => this.#events.onFailed(failure as Error));
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
        if (this.#alone === item) this.#doubted += 1;
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
      this.#suspects.forget(idOf(item));
      if (outcome.kind === 'confirmed') {
        this.#counters.confirmed += 1;
        this.#events.onConfirmed(item);
      } else {
        this.#counters.returned += 1;
        this.#events.onReturned(item, outcome.reason);
      }
    }
    this.#endWait?.();
  }

  #refuse(item: T, fault: Fault): void {
    this.#suspects.forget(idOf(item));
    this.#window.give(item.bytes);
    this.#events.onRefused(item, fault);
  }

  /** A nack is back-pressure (a full queue), not a fault: the message keeps its credit and goes again, later and later. */
  #nack(item: T): void {
    item.nacks += 1;
    if (item.nacks > this.#maxNacks) {
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
      for (const each of again) this.#sendInTurn(each);
    });
  }

  #channelDied(tracker: ConfirmTracker<T>, error: Error): void {
    if (this.#mode === 'closed') return;
    const unknown = tracker.lost();
    const alone = this.#alone;
    this.#alone = undefined;
    this.#lost = { messageIds: unknown.map(idOf), alone: alone !== undefined };
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
    this.#doubted += unknown.length;
    this.#mode = 'reopening';
    this.#events.onChannelDied(error, unknown.length);
    this.#endWait?.();
    this.#recover(tracker).catch((failure: unknown) => this.#events.onFailed(failure as Error));
  }

  /** Ends early when the new channel dies, too: its own recovery goes on. */
  async #recover(dead: ConfirmTracker<T>): Promise<void> {
    if (this.#tracker !== dead) return;
    await this.#openChannel();
    if ((this.#mode as string) !== 'closed') await this.#isolate();
  }

  /** Sends what is queued: what is doubted or suspected one by one, the rest as fast as it comes. */
  async #isolate(): Promise<void> {
    const tracker = this.#tracker;
    const superseded = (): boolean => this.#tracker !== tracker || this.#mode !== 'isolating';
    const quiet = async (): Promise<void> => {
      while (tracker.size > 0 && !superseded()) await new Promise<void>((resolve) => (this.#endWait = resolve));
    };
    this.#mode = 'isolating';
    for (let item = this.#queue[0]; item; item = this.#queue[0]) {
      if (this.#doubted > 0 || this.#suspects.has(idOf(item))) {
        await quiet();
        if (superseded()) return;
        const fault = this.#suspects.verdict(idOf(item)) ?? (await this.#exchanges.check(item.message?.exchange ?? ''));
        if (superseded()) return;
        this.#queue.shift();
        this.#doubted = Math.max(0, this.#doubted - 1);
        if (fault) {
          this.#refuse(item, fault);
          continue;
        }
        this.#alone = item;
        this.#send(item);
        await quiet();
        if (superseded()) return;
        this.#alone = undefined;
      } else {
        this.#queue.shift();
        this.#send(item);
        // The send may have found the connection closing; the rest keeps its place behind it.
        if (superseded()) return;
      }
    }
    this.#mode = 'flowing';
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

function idOf(item: Publishable): string {
  return item.message?.messageId ?? '';
}

/** The broker closed the channel over something that was sent on it; a lost connection gives no reply code. */
function isChannelException(error: Error): boolean {
  return 'code' in error && typeof error.code === 'number';
}

/**
 * Nothing can be published to the exchange as a whole: the permission is missing, or it is internal. For a single topic
 * of it the text says "access to topic".
 */
function isExchangeForbidden(error: Error): boolean {
  return 'code' in error && error.code === 403 && /access to exchange|to internal exchange/.test(error.message);
}
