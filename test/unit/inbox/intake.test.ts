import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Delivery } from '../../../src/core/delivery.js';
import { WaybillError, type WaybillErrorCode } from '../../../src/core/errors.js';
import { Gate } from '../../../src/inbox/gate.js';
import { Intake, type IntakeEnd } from '../../../src/inbox/intake.js';
import { Outcomes } from '../../../src/inbox/outcomes.js';
import { Persisting } from '../../../src/inbox/persisting.js';
import type { Arrival, ConsumeChannelEvents, ConsumerCounters, ReceivedRow } from '../../../src/inbox/ports.js';
import { silentLogger } from '../../../src/telemetry/log.js';
import { ManualClock, turn } from '../../support/manual-clock.js';

/** What the next call of the store does. */
type Step = 'ok' | WaybillErrorCode;

/** An intake between a channel and a store that do what a test says, and what they saw. */
class Stage {
  readonly clock = new ManualClock();
  readonly stopping = new AbortController();
  readonly written = new Set<string>();
  readonly batches: string[][] = [];
  readonly acks: number[] = [];
  /** Acknowledged although it was not written. */
  readonly early: number[] = [];
  readonly gate: Gate;
  readonly counters = new Proxy<Record<string, number>>({}, { get: (all, name) => all[String(name)] ?? 0 });
  steps: Step[] = [];
  answers = false;
  /** Whether each statement was to handle its rows. */
  readonly applied: boolean[] = [];
  suspects = 0;
  events: ConsumeChannelEvents | undefined;
  isOpen = true;
  cancelled = false;
  end: IntakeEnd | Error | undefined;
  #tag = 0;
  readonly #ids: string[] = [];
  intake: Intake | undefined;
  /** Ids that PostgreSQL refuses as rows. */
  readonly refused = new Set<string>();

  constructor(options: { applies?: boolean; byKey?: boolean; rows?: number; usualPrefetch?: number } = {}) {
    const { clock } = this;
    const log = silentLogger;
    const counters = this.counters as unknown as ConsumerCounters;
    const done = (): Promise<never> => Promise.resolve(undefined as never);
    this.gate = new Gate({ store: { break: done, mend: done, giveBack: done }, clock, log });
    const persisting = new Persisting({
      store: { receive: (arrivals, apply) => this.#receive(arrivals, apply) },
      clock,
      log,
      counters,
      tooSlow: 'too slow',
    });
    const outcomes = new Outcomes({
      counters,
      log,
      logsAll: false,
      followers: {
        onWaiting: () => undefined,
        onDead: () => undefined,
        onReleased: () => undefined,
        onBlocked: () => undefined,
      },
      isGivenBack: () => false,
    });
    const intake = new Intake({
      rules: { identification: { kind: 'message-id' }, idNamespace: 'none', accept: [], maxBodyBytes: 1_000 },
      limits: { rows: options.rows ?? 4, bytes: 1_000, waitMs: 10 },
      applies: options.applies ?? false,
      byKey: options.byKey ?? false,
      persisting,
      gate: this.gate,
      outcomes,
      counters,
      log,
      clock,
      mostHeldBytes: 1_000,
      answers: () => Promise.resolve(this.answers),
      onPending: () => undefined,
      onSuspects: (rows) => (this.suspects += rows.length),
      ...(options.usualPrefetch === undefined ? {} : { usualPrefetch: options.usualPrefetch }),
    });
    this.intake = intake;
    intake
      .run((events) => {
        this.events = events;
        const cancel = (): Promise<void> => {
          this.cancelled = true;
          return Promise.resolve();
        };
        const close = (): Promise<void> => {
          this.isOpen = false;
          return Promise.resolve();
        };
        return Promise.resolve({ isOpen: true, ackUpTo: (tag) => this.#ack(tag), cancel, close });
      }, this.stopping.signal)
      .then(
        (end) => (this.end = end),
        (error: unknown) => (this.end = error as Error),
      );
  }

  #receive(arrivals: readonly Arrival[], apply: boolean): Promise<ReceivedRow[]> {
    this.applied.push(apply);
    const step = this.steps.shift() ?? 'ok';
    if (step !== 'ok') return Promise.reject(new WaybillError(step, 'as the test says'));
    if (arrivals.some(({ row }) => this.refused.has(row.messageId))) {
      return Promise.reject(new WaybillError('WAYBILL_ROW_REFUSED', 'as the test says'));
    }
    this.batches.push(arrivals.map(({ row }) => row.originalId ?? row.messageId));
    return Promise.resolve(
      arrivals.map(({ row }, index) => {
        const id = row.originalId ?? row.messageId;
        const isNew = !this.written.has(id);
        this.written.add(id);
        return {
          outcome: isNew ? ('inserted' as const) : ('duplicate' as const),
          seq: BigInt(index),
          status: row.dead ? 'dead' : 'pending',
          verdict: null,
          attempt: 1,
          dueInMs: null,
          deadReason: row.dead?.reason ?? null,
          error: null,
          hasReleased: false,
        };
      }),
    );
  }

  #ack(tag: number): void {
    this.acks.push(tag);
    for (let each = 1; each <= tag; each += 1) if (!this.written.has(this.#ids[each - 1]!)) this.early.push(each);
  }

  deliver(id: string, bytes = 2, { redelivered = false, count = 0 } = {}): void {
    this.#tag += 1;
    this.#ids.push(id);
    const delivery: Delivery = {
      deliveryTag: this.#tag,
      redelivered,
      exchange: '',
      routingKey: 'q',
      properties: { messageId: id, headers: { 'x-delivery-count': count } },
      body: Buffer.alloc(bytes),
    };
    this.events?.onDelivery(delivery);
  }

  async pass(ms: number): Promise<void> {
    for (let step = 0; step < 6; step += 1) await turn();
    this.clock.advance(ms);
    for (let step = 0; step < 6; step += 1) await turn();
  }
}

describe('the intake', () => {
  it('I1 I2 acknowledges nothing before it is written and in the end everything, whatever the store does', async () => {
    const step = fc.constantFrom<Step>(
      'ok',
      'ok',
      'WAYBILL_TRANSACTION_REPEATED',
      'WAYBILL_DATABASE_UNAVAILABLE',
      'WAYBILL_STATEMENT_TOO_SLOW',
    );
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.oneof(fc.integer({ min: 0, max: 12 }).map(String), fc.constant('wait')), { maxLength: 25 }),
        fc.array(step, { maxLength: 8 }),
        fc.subarray(['3', '7']),
        async (acts, steps, refused) => {
          const stage = new Stage();
          stage.steps = steps;
          for (const id of refused) stage.refused.add(id);
          await stage.pass(0);
          for (const act of acts) {
            if (act === 'wait') await stage.pass(11);
            else stage.deliver(act);
          }
          for (let n = 0; n < 40; n += 1) await stage.pass(1_000);
          const delivered = acts.filter((act) => act !== 'wait');
          expect(stage.early).toEqual([]);
          expect(stage.end).toBeUndefined();
          expect(stage.acks.at(-1) ?? 0).toBe(delivered.length);
          expect([...stage.acks].sort((a, b) => a - b)).toEqual(stage.acks);
          expect([...stage.written].sort()).toEqual([...new Set(delivered)].sort());
          stage.stopping.abort();
          await stage.pass(0);
          expect(stage.end).toBe('stopped');
        },
      ),
      { numRuns: 60 },
    );
  });

  it('F109 holds a batch while the database is away, and gives it back well before the consumer timeout', async () => {
    const stage = new Stage();
    stage.steps = Array.from({ length: 1_000 }, () => 'WAYBILL_DATABASE_UNAVAILABLE');
    await stage.pass(0);
    stage.deliver('a');
    for (let n = 0; n < 50; n += 1) await stage.pass(1_000);
    expect(stage.end).toBeUndefined();
    expect(stage.isOpen).toBe(true);
    for (let n = 0; n < 20; n += 1) await stage.pass(1_000);
    expect(stage.end).toBe('away');
    expect(stage.isOpen).toBe(false);
    expect(stage.acks).toEqual([]);
  });

  it('F19 drops the acknowledgement of a channel that has ended', async () => {
    const stage = new Stage();
    await stage.pass(0);
    stage.deliver('a');
    stage.events?.onClosed(new WaybillError('WAYBILL_BROKER_UNAVAILABLE', 'gone'));
    await stage.pass(20);
    expect(stage.end).toBeInstanceOf(WaybillError);
    expect(stage.acks).toEqual([]);
  });

  it('F112 cancels first, then writes what has arrived, then ends', async () => {
    const stage = new Stage();
    await stage.pass(0);
    for (const id of ['a', 'b', 'c', 'd', 'e', 'f']) stage.deliver(id);
    stage.stopping.abort();
    await stage.pass(0);
    expect(stage.cancelled).toBe(true);
    expect(stage.end).toBe('stopped');
    expect(stage.acks.at(-1)).toBe(6);
  });

  it('F96 by key it never cancels: the batch that is being written is finished, the rest goes back with the channel', async () => {
    const stage = new Stage({ byKey: true });
    await stage.pass(0);
    for (const id of ['a', 'b', 'c', 'd', 'e', 'f']) stage.deliver(id);
    stage.steps = ['WAYBILL_DATABASE_UNAVAILABLE'];
    await stage.pass(0);
    stage.stopping.abort();
    expect(stage.end).toBeUndefined();
    await stage.pass(1_000);
    expect(stage.end).toBe('stopped');
    expect([...stage.written]).toEqual(['a', 'b', 'c', 'd']);
    expect(stage.acks).toEqual([4]);
    expect([stage.cancelled, stage.isOpen]).toEqual([false, false]);
    const next = new Stage({ byKey: true });
    await next.pass(0);
    for (const id of ['a', 'b', 'c', 'd', 'e', 'f']) next.deliver(id);
    next.stopping.abort();
    await next.pass(0);
    expect(next.end).toBe('stopped');
    expect([...next.written]).toEqual([]);
  });

  it('F126 stores what has arrived without handling it when the handler is not there, and takes nothing more', async () => {
    const stage = new Stage({ applies: true });
    stage.steps = ['WAYBILL_HANDLER_BROKEN'];
    await stage.pass(0);
    for (const id of ['a', 'b']) stage.deliver(id);
    await stage.pass(20);
    expect(stage.gate.isOpen).toBe(true);
    expect([...stage.written]).toEqual(['a', 'b']);
    expect(stage.acks).toEqual([2]);
    expect(stage.end).toBe('paused');
  });

  it('F110 lets the channel go when more bytes are handed out than may be here, and says what would fit', async () => {
    const stage = new Stage();
    await stage.pass(0);
    for (let n = 0; n < 20; n += 1) stage.deliver(`m-${n}`, 100);
    await stage.pass(0);
    expect(stage.end).toBe('too-much');
    expect(stage.isOpen).toBe(false);
    expect(stage.intake?.fitting).toBe(5);
    const alone = new Stage();
    await alone.pass(0);
    alone.deliver('large', 900);
    await alone.pass(20);
    alone.deliver('larger', 999);
    await alone.pass(20);
    expect(alone.acks.at(-1)).toBe(2);
  });

  it('F110 lets the channel go also while it writes, and takes nothing more from it', async () => {
    const stage = new Stage({ rows: 2 });
    stage.steps = ['WAYBILL_DATABASE_UNAVAILABLE'];
    await stage.pass(0);
    for (let n = 0; n < 2; n += 1) stage.deliver(`m-${n}`, 100);
    await stage.pass(0);
    expect(stage.isOpen).toBe(true);
    for (let n = 2; n < 20; n += 1) stage.deliver(`m-${n}`, 100);
    expect(stage.isOpen).toBe(false);
    expect(stage.counters['received']).toBe(11);
    await stage.pass(1_000);
    expect(stage.end).toBe('too-much');
  });

  it('F110 goes back to the usual prefetch once the bodies are small again, and finishes what is here', async () => {
    const stage = new Stage({ usualPrefetch: 10 });
    await stage.pass(0);
    for (let n = 0; n < 9; n += 1) stage.deliver(`large-${n}`, 90);
    await stage.pass(20);
    stage.deliver('large-9', 90);
    await stage.pass(20);
    for (let n = 0; n < 9; n += 1) stage.deliver(`small-${n}`, 10);
    await stage.pass(20);
    expect(stage.cancelled).toBe(false);
    stage.deliver('small-9', 10);
    await stage.pass(20);
    expect(stage.cancelled).toBe(true);
    expect(stage.end).toBe('roomy');
    expect(stage.acks.at(-1)).toBe(20);
  });

  it('F125 only what came again and again is handled by itself, not what was moved here with the count of another queue', async () => {
    const stage = new Stage({ applies: true });
    await stage.pass(0);
    stage.deliver('moved', 2, { count: 20 });
    stage.deliver('again', 2, { redelivered: true, count: 2 });
    await stage.pass(20);
    expect(stage.suspects).toBe(0);
    stage.deliver('suspect', 2, { redelivered: true, count: 3 });
    await stage.pass(20);
    expect(stage.suspects).toBe(1);
    expect(stage.acks).toEqual([2, 3]);
  });

  it('F125 a batch that fails although the database answers is stored, to be handled one by one', async () => {
    const stage = new Stage({ applies: true });
    stage.answers = true;
    stage.steps = Array.from({ length: 3 }, () => 'WAYBILL_DATABASE_UNAVAILABLE');
    await stage.pass(0);
    for (const id of ['a', 'b']) stage.deliver(id);
    for (let n = 0; n < 6; n += 1) await stage.pass(1_000);
    expect(stage.applied).toEqual([true, true, true, false]);
    expect(stage.suspects).toBe(2);
    expect(stage.acks).toEqual([2]);
    expect(stage.end).toBeUndefined();
  });
});
