import type { Return } from '../../../src/core/confirms.js';
import type { Fault } from '../../../src/core/fault.js';
import { toMessage, isFault, type Message } from '../../../src/core/message.js';
import { Suspects } from '../../../src/core/suspects.js';
import { Window } from '../../../src/core/window.js';
import { ExchangeChecks } from '../../../src/outbox/exchange-checks.js';
import type { PublishChannel, PublishChannelEvents, PublishConnection } from '../../../src/outbox/ports.js';
import { Publishing, type Publishable } from '../../../src/outbox/publishing.js';
import { ManualClock } from '../../support/manual-clock.js';
import { outboxRow } from '../../support/outbox-rows.js';
import { noCounts } from './model-relay.js';

/** A message with a name that the test reads. */
export interface Item extends Publishable {
  name: string;
}

/** A channel that keeps what it is given and says what the test makes it say. */
export class ScriptedChannel implements PublishChannel {
  readonly events: PublishChannelEvents;
  readonly sent: string[] = [];
  isOpen = true;
  /** Thrown by the next publish. */
  throwNext: Error | undefined;

  constructor(events: PublishChannelEvents) {
    this.events = events;
  }

  publish(message: Message): void {
    const error = this.throwNext;
    this.throwNext = undefined;
    if (error) throw error;
    if (!this.isOpen) throw Object.assign(new Error('Channel closed'), { name: 'IllegalOperationError' });
    this.sent.push(message.messageId);
  }

  close(): Promise<void> {
    this.isOpen = false;
    return Promise.resolve();
  }

  die(code?: number): void {
    this.isOpen = false;
    this.events.onClosed(Object.assign(new Error(`died ${code ?? ''}`), code === undefined ? {} : { code }));
  }
}

/** The real Publishing on a scripted connection, with a record of what it told. */
export class Bench implements PublishConnection {
  readonly clock = new ManualClock();
  readonly window = new Window(100, 1_000_000);
  readonly counters = noCounts();
  readonly channels: ScriptedChannel[] = [];
  readonly told: string[] = [];
  readonly missing = new Set<string>();
  isBlocked = false;
  openFails: Error | undefined;
  failure: Error | undefined;
  readonly publishing: Publishing<Item>;

  /** `suspects` as earlier sessions left them. */
  constructor(suspects = new Suspects(), confirmTimeoutMs = 30_000) {
    this.publishing = new Publishing<Item>({
      connection: this,
      exchanges: new ExchangeChecks(this, this.clock),
      window: this.window,
      clock: this.clock,
      confirmTimeoutMs,
      counters: this.counters,
      suspects,
      events: {
        onConfirmed: ({ name }) => this.told.push(`confirmed ${name}`),
        onReturned: ({ name }, reason: Return) => this.told.push(`returned ${name} ${reason.replyCode}`),
        onRefused: ({ name }, { fault }) => this.told.push(`refused ${name} ${fault}`),
        onNackedTooOften: ({ name }) => this.told.push(`nacked ${name}`),
        onFailed: (error) => (this.failure ??= error),
        onChannelDied: (_error, unconfirmed) => this.told.push(`died ${unconfirmed}`),
      },
    });
  }

  openChannel(events: PublishChannelEvents): Promise<PublishChannel> {
    if (this.openFails) return Promise.reject(this.openFails);
    const channel = new ScriptedChannel(events);
    this.channels.push(channel);
    return Promise.resolve(channel);
  }

  checkExchange(name: string): Promise<Fault | undefined> {
    return Promise.resolve(this.missing.has(name) ? { fault: 'exchange_missing', text: name } : undefined);
  }

  get channel(): ScriptedChannel {
    return this.channels.at(-1)!;
  }

  /** Publishes one message for each letter. */
  publish(names: string, exchange = 'events'): void {
    for (const name of Array.from(names)) {
      const message = toMessage(outboxRow({ id: name }), { exchange, routingKey: 'x', maxBodyBytes: 100 });
      if (isFault(message)) throw new Error(message.text);
      this.publishing.publish({ name, message, bytes: 10, nacks: 0 });
    }
  }

  /** What went out on each channel, oldest first. */
  get sent(): string[] {
    return this.channels.map(({ sent }) => sent.join(''));
  }
}
