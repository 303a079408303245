import type { Delivery, DeliveryProperties, InboundRow } from '../core/delivery.js';
import type { Message } from '../core/message.js';
import type { Verdict } from '../core/verdict.js';

/** What the receiver pipeline needs from the rooms below; the adapters satisfy these by their shape. */

/** One row of the inbox as a handler gets it. */
export interface InboxMessage {
  seq: bigint;
  consumer: string;
  messageId: string;
  type: string | null;
  key: string | null;
  schemaVersion: number | null;
  /** As received, byte for byte. */
  body: Buffer;
  contentType: string | null;
  contentEncoding: string | null;
  headers: Readonly<Record<string, unknown>>;
  correlationId: string | null;
  causationId: string | null;
  replyTo: string | null;
  appId: string | null;
  occurredAt: Date | null;
  traceparent: string | null;
  tracestate: string | null;
  /** By which it came; null where that is not known. */
  exchange: string | null;
  routingKey: string | null;
  /** From 1. */
  attempt: number;
}

/** Has the effect of a message, outside the inbox transaction. */
export interface MessageHandler {
  /** Never rejects for a message's sake; `signal` aborts when the service can wait no longer. */
  handle(message: InboxMessage, signal: AbortSignal): Promise<Verdict>;
}

/** A row to be written, and what is known of it beyond the message itself. */
export interface Arrival {
  row: InboundRow;
  /** What the row was made from, should PostgreSQL refuse it. */
  properties: DeliveryProperties;
  /** The text of a failure that is already known: the row waits, and its handler is not called. */
  failed?: string;
  /** Not handled with the others: it is taken from the table by itself. */
  hold?: boolean;
}

/** How an attempt at a claimed row ended. `release`: it was not made, or not for the message's sake: nothing is spent. */
export type Settlement = Verdict | { kind: 'release'; error: string };

/** What became of a row that was handled, or could not be. */
export interface Outcome {
  seq: bigint;
  status: string;
  /** Null where no handler was asked. `lost`: the lease was another's by then, and nothing was changed (I7). */
  verdict: Settlement['kind'] | 'lost' | null;
  /** The next attempt, from 1. */
  attempt: number | null;
  /** When the next attempt is due, milliseconds from now by the server's clock; null when there is none. */
  dueInMs: number | null;
  deadReason: string | null;
  error: string | null;
  /** Whether a follower of its key may go now. */
  hasReleased: boolean;
}

export interface ReceivedRow extends Outcome {
  outcome: 'inserted' | 'duplicate' | 'conflict';
}

/** Rows that are handled under one token. */
export interface Claim {
  token: string;
  messages: InboxMessage[];
}

/** A dead message whose copy has not gone out, claimed for it. */
export interface Death {
  message: InboxMessage;
  exchange: string;
  routingKey: string;
  originalId: string | null;
  deadReason: string;
  error: string | null;
  failures: number;
  /** As the server writes it; says which of the row's deaths is meant. */
  diedAt: string;
  /** How often its copy was refused when it was sent alone. */
  refused: number;
}

/** The inbox of one consumer. Errors are WaybillErrors; nothing of a failed call stays. */
export interface InboxStore {
  /** Resolves when the database answers. */
  ping(): Promise<void>;
  /** One statement, one transaction, for rows in delivery order (I1: acknowledge after it has returned). */
  receive(arrivals: readonly Arrival[], apply: boolean): Promise<ReceivedRow[]>;
  /** Up to `max` rows that are due, new or abandoned. */
  claim(max: number, leaseMs: number): Promise<Claim | undefined>;
  /** These rows as far as they are due at that attempt; null: at any. */
  claimRows(rows: readonly { seq: bigint; attempt: number | null }[], leaseMs: number): Promise<Claim | undefined>;
  /** Calls the `sql` handler for claimed rows, each in a subtransaction of its own. */
  apply(seqs: readonly bigint[], token: string): Promise<Outcome[]>;
  settle(token: string, results: readonly { seq: bigint; verdict: Settlement }[]): Promise<Outcome[]>;
  /** Prolongs the leases of those rows that are still claimed with the token. */
  extend(seqs: readonly bigint[], token: string, leaseMs: number): Promise<void>;
  /** Takes back so many of each row's newest broken attempts, once per call number; gives how many rows. */
  giveBack(owed: readonly { seq: bigint; attempts: number }[], call: number): Promise<number>;
  /** Rows that are due, without claiming them. */
  due(max: number): Promise<{ seq: bigint; attempt: number; alone: boolean }[]>;
  /**
   * Releases followers whose key nobody holds any more; gives how many. Looks at a bounded number of keys, and goes on
   * after them at the next call.
   */
  sweepKeys(): Promise<number>;
  /** Deaths to copy, for nobody else until the lease is over; at least one if there is any, whatever its size. */
  claimDeaths(limits: { rows: number; bytes: number; leaseMs: number }): Promise<Death[]>;
  deathsCopied(deaths: readonly Death[]): Promise<void>;
  /** They are still to be copied: at once (null), or after the delay. */
  keepDeaths(deaths: readonly Death[], delayMs: number | null, wasRefused: boolean): Promise<void>;
  /** Wakes the applications that claim rows. */
  wake(): Promise<void>;
  /** Notes for a time that the handler of this process is broken. */
  break(reason: string): Promise<void>;
  /** Takes that back. */
  mend(): Promise<void>;
}

/** A channel that consumes one queue. After `onClosed` nothing else is called. */
export interface ConsumeChannel {
  /** Acknowledges every delivery of this channel up to the tag. A closed channel ignores it (F19). */
  ackUpTo(deliveryTag: number): void;
  readonly isOpen: boolean;
  /** No further deliveries; those that are out can still be acknowledged. */
  cancel(): Promise<void>;
  close(): Promise<void>;
}

export interface ConsumeChannelEvents {
  onDelivery(delivery: Delivery): void;
  /** Once: the channel has died, or the broker has cancelled the consumer (F94). */
  onClosed(error: Error): void;
}

/** Publishes copies of dead messages and waits until the broker has them. */
export interface CopyPublisher {
  /** Rejects when they could not be sent for a reason that is not theirs. */
  publish(messages: readonly Message[]): Promise<CopiesSent>;
  /** The queue that was configured for them; null: whoever wants them binds a queue. */
  readonly queue: string | null;
}

/** The broker has taken them all, but for the ids that no queue takes; or it, or the client, objects to one of them. */
export type CopiesSent = { kind: 'taken'; unroutable: ReadonlySet<string> } | { kind: 'refused'; error: unknown };

/** The broker as one consumer sees it. Each call opens what it needs; errors are WaybillErrors. */
export interface ConsumerBroker {
  /** Declares, checks or leaves alone what the consumer needs, as configured. */
  prepare(): Promise<void>;
  /** With another prefetch than the configured one, if it is given. */
  consume(events: ConsumeChannelEvents, prefetch: number | undefined): Promise<ConsumeChannel>;
  /** Messages in the queue that are not delivered. */
  waiting(): Promise<number>;
  /** Whether there is a queue of deaths that the broker decides. */
  hasDeaths(): Promise<boolean>;
  consumeDeaths(events: ConsumeChannelEvents): Promise<ConsumeChannel>;
  /** Declares anew what deaths go through, as far as it was deleted; where others declare it, rejects if it was. */
  keepDeadLetters(): Promise<void>;
  /**
   * Opens the delay exchange and listens to what comes back; foreign: a timer of another installation; undefined: no
   * timer. `onClosed` is called once for both.
   */
  openTimers(
    onTimer: (timer: Timer | 'foreign' | undefined) => void,
    onClosed: (error: Error) => void,
  ): Promise<OpenTimers>;
  readonly copies: CopyPublisher;
}

export interface OpenTimers {
  exchange: TimerExchange;
  close(): Promise<void>;
}

/** Something that brings timers back, on the publishing connection. */
export interface TimerExchange {
  /** Whether RabbitMQ takes nothing at this moment (a memory or disk alarm): what were sent would lie in memory. */
  readonly isBlocked: boolean;
  /** Sends a timer that comes back to this consumer's retry queue after the delay. May be lost. */
  send(timer: Timer, delayMs: number): void;
  /** Delays that can be asked for, milliseconds; any delay where it is null. */
  readonly tiersMs: readonly number[] | null;
}

/** What travels through the delay exchange. */
export interface Timer {
  consumer: string;
  seq: string;
  attempt: number;
  /** What remains of the delay when it comes back, milliseconds. */
  restMs: number;
}

/** What is counted; the metrics are made from it. */
export interface ConsumerCounters {
  received: number;
  inserted: number;
  applied: number;
  duplicates: number;
  conflicts: number;
  malformed: number;
  retried: number;
  deferred: number;
  broken: number;
  dead: number;
  lost: number;
  repeated: number;
  brokerDeaths: number;
  timersSent: number;
  timersReceived: number;
  timersRefused: number;
  copies: number;
}

/** A line of the log; the fields carry ids, never bodies. */
export interface ConsumerLog {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}
