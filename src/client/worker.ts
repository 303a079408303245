import { backoffMs, RECONNECT_BACKOFF } from '../core/schedule.js';
import { pause, systemClock, within, type Clock } from '../runtime/clock.js';
import { Failure, Wakeup } from '../runtime/signal.js';
import { attempt, type AttemptOptions, type Handle } from './attempt.js';
import { Control } from './control.js';
import type { Claim, ReceivedMessage } from './message.js';
import { sqlState, type ClientPool, type PooledClient } from './queryable.js';
import { isLeaseLost, type Settlement } from './verdict.js';

export interface InboxWorkerOptions<C extends PooledClient> {
  /** A pool of `pg` with room for `concurrency` connections and one more. */
  pool: ClientPool<C>;
  /** The consumer whose rows are handled; its handler is `store`, and the role of the pool is granted its rows. */
  consumer: string;
  handle: Handle<C>;
  /** Messages handled at once (default 4). */
  concurrency?: number;
  /** How long a message is ours without a word of us (default 60,000 ms). It is prolonged while the handler works. */
  leaseMs?: number;
  /** After this the handler's signal aborts and its lease runs out (default 300,000 ms). */
  timeoutMs?: number;
  /** How often is looked without being woken (default 1,000 ms). */
  pollMs?: number;
  /**
   * Of the transactions (default read committed). Above it they do not see, and so cannot release, messages of their key
   * that came since they began: the consumer finds these within half a minute.
   */
  isolation?: AttemptOptions<C>['isolation'];
  /** The schema of the Waybill tables (default waybill). */
  schema?: string;
  /** Told of everything that happens, for logs and metrics. Must not throw. */
  onEvent?: (event: WorkerEvent) => void;
  /** Tests put their own here. */
  clock?: Clock;
}

/** `release`: the message went back untouched. `lost`: its lease was over, or it was done although we could not hear it. */
export type WorkerEvent =
  | { kind: 'done'; message: ReceivedMessage; error?: undefined }
  | { kind: Settlement['verdict'] | 'lost'; message: ReceivedMessage; error: unknown }
  /** Claiming, prolonging or settling failed; it is tried again. */
  | { kind: 'trouble'; message?: undefined; error: unknown };

interface Task {
  claim: Claim;
  /** Told to the handler. */
  aborting: AbortController;
  cut: Failure;
  /** Aborts when the attempt is over. */
  ended: AbortController;
  /** Written when the lease is prolonged, read when the attempt is settled. */
  leaseEndMs: number;
  /** Aborts with `#over`: a signal of its own, because each one takes a few listeners only. */
  over: AbortController;
  whole: Promise<void>;
}

/** Of the time that a stop has, for giving back what could not be finished. */
const LAST_WORDS_MS = 2_000;

/**
 * Handles the messages of a `store` consumer in the application's own process: claims rows, runs the application's function
 * in one transaction with `inbox_complete`, and settles what fails (design 4.3).
 *
 *   claim -> begin -> handle -> complete -> commit          effect and word in one transaction: once (I7)
 *                        \-> roll back -> fail | defer | release
 *
 *   new ─start─▶ running ─stop─▶ stopping (nothing is claimed; what is under way ends) ─▶ stopped
 *
 * A worker that was too slow finds its token refused (WB003) when it completes, and rolls back. A crash leaves the lease to
 * run out; another one claims the row then. An outage of PostgreSQL spends no attempt (I4).
 */
export class InboxWorker<C extends PooledClient> {
  readonly #options: InboxWorkerOptions<C>;
  readonly #clock: Clock;
  readonly #concurrency: number;
  readonly #leaseMs: number;
  readonly #wake = new Wakeup();
  readonly #tasks = new Set<Task>();
  readonly #stopping = new AbortController();
  /** Aborts when a stop waits no longer for a server that does not answer. */
  readonly #over = new AbortController();
  #opening: Promise<Control> | undefined;
  #loop: Promise<void> | undefined;
  #stopped: Promise<{ left: number }> | undefined;

  constructor(options: InboxWorkerOptions<C>) {
    const { concurrency = 4, leaseMs = 60_000, pool } = options;
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#concurrency = concurrency;
    this.#leaseMs = leaseMs;
    if (!Number.isInteger(concurrency) || concurrency < 1 || concurrency > 1_000) {
      throw new RangeError('concurrency must be a whole number from 1 to 1000');
    }
    if (!(leaseMs >= 1_000 && leaseMs <= 86_400_000)) throw new RangeError('leaseMs must be 1 s to 1 day');
    const most = pool.options?.max;
    if (most !== undefined && most <= concurrency) {
      throw new RangeError(`the pool has ${most} connections; ${concurrency} messages at once need ${concurrency + 1}`);
    }
  }

  /** Messages under way. */
  get handling(): number {
    return this.#tasks.size;
  }

  /** Resolves when the worker listens; rejects, and nothing is left behind, when PostgreSQL cannot be reached. */
  async start(): Promise<void> {
    if (this.#loop || this.#stopped) throw new Error('a worker is started once');
    const control = await this.#control();
    if (this.#stopping.signal.aborted) control.close();
    else this.#loop = this.#claiming();
  }

  /**
   * Claims nothing more and waits for what is under way, `timeoutMs` at most. What is not done by then is cut off and goes
   * back, `left` says how many. Resolves when nothing of the worker is left; calling it again gives the same promise.
   */
  stop({ timeoutMs = 25_000 }: { timeoutMs?: number } = {}): Promise<{ left: number }> {
    this.#stopped ??= this.#stop(timeoutMs);
    return this.#stopped;
  }

  async #stop(timeoutMs: number): Promise<{ left: number }> {
    this.#stopping.abort();
    this.#wake.wake();
    const all = this.#allEnded();
    let left = 0;
    if (!(await within(this.#clock, all, Math.max(0, timeoutMs - LAST_WORDS_MS), false))) {
      const reason = new Error('the worker stops and can wait no longer');
      left = this.#tasks.size;
      for (const { aborting, cut } of this.#tasks) {
        aborting.abort(reason);
        cut.fail(reason);
      }
      await within(this.#clock, all, LAST_WORDS_MS, false);
    }
    this.#over.abort();
    for (const { over } of this.#tasks) over.abort();
    // What waits for a server that does not answer ends with its connection.
    const closed = this.#opening?.then((control) => control.close()).catch(() => undefined);
    await within(this.#clock, Promise.all([closed, all]), LAST_WORDS_MS, undefined);
    return { left };
  }

  async #allEnded(): Promise<true> {
    await this.#loop;
    await Promise.all([...this.#tasks].map(({ whole }) => whole));
    return true;
  }

  /** The connection of its own, made anew when it was lost. */
  async #control(): Promise<Control> {
    const { pool, consumer, schema = 'waybill' } = this.#options;
    const onWake = (): void => this.#wake.wake();
    for (;;) {
      if (this.#over.signal.aborted) throw new Error('the worker has stopped');
      const opening = (this.#opening ??= Control.open({ pool, schema, consumer, clock: this.#clock, onWake }));
      const control = await opening.catch((error: unknown) => {
        if (this.#opening === opening) this.#opening = undefined;
        throw error;
      });
      if (control.isOpen) return control;
      // Whoever comes first makes the next one.
      if (this.#opening === opening) this.#opening = undefined;
    }
  }

  async #claiming(): Promise<void> {
    let failures = 0;
    while (!this.#stopping.signal.aborted) {
      const free = this.#concurrency - this.#tasks.size;
      try {
        const claims = free > 0 ? await (await this.#control()).claim(free, this.#leaseMs) : [];
        failures = 0;
        for (const claim of claims) this.#begin(claim);
        if (claims.length === 0) await this.#rest();
      } catch (error) {
        failures += 1;
        this.#tell({ kind: 'trouble', error });
        const delayMs = backoffMs(RECONNECT_BACKOFF, failures, this.#clock.random());
        await pause(this.#clock, delayMs, this.#stopping.signal);
      }
    }
  }

  /** Until there may be something to do: a notification, a message that has ended, or the time to look. */
  async #rest(): Promise<void> {
    const { pollMs = 1_000 } = this.#options;
    const cancel = this.#clock.after(pollMs, () => this.#wake.wake());
    await this.#wake.wait();
    cancel();
  }

  #begin(claim: Claim): void {
    const task: Task = {
      claim,
      aborting: new AbortController(),
      cut: new Failure(),
      ended: new AbortController(),
      leaseEndMs: this.#clock.now() + this.#leaseMs,
      over: new AbortController(),
      whole: Promise.resolve(),
    };
    this.#tasks.add(task);
    task.whole = this.#run(task).finally(() => {
      this.#tasks.delete(task);
      this.#wake.wake();
    });
  }

  async #run(task: Task): Promise<void> {
    const { pool, handle, schema = 'waybill', isolation = 'read committed' } = this.#options;
    const { claim, aborting, cut, ended } = task;
    const keeping = this.#keepLease(task);
    const options = { pool, handle, schema, isolation, clock: this.#clock };
    const end = await attempt(options, claim, aborting.signal, cut);
    ended.abort();
    await keeping;
    const { message } = claim;
    if (end.kind !== 'failed') this.#tell({ ...end, message });
    else if (await this.#settle(task, end.settlement)) {
      this.#tell({ kind: end.settlement.verdict, message, error: end.error });
    } else this.#tell({ kind: 'lost', message, error: end.error });
  }

  /** Prolongs the lease while the handler works within its time; tells the handler when there is none any more. */
  async #keepLease(task: Task): Promise<void> {
    const { timeoutMs = 300_000 } = this.#options;
    const { claim, aborting, ended } = task;
    const endMs = this.#clock.now() + timeoutMs;
    for (;;) {
      const leftMs = endMs - this.#clock.now();
      await pause(this.#clock, Math.min(this.#leaseMs / 3, leftMs), ended.signal);
      if (ended.signal.aborted) return;
      if (this.#clock.now() >= endMs) {
        aborting.abort(new Error(`the handler has not ended within ${timeoutMs} ms`));
        return;
      }
      try {
        const fromMs = this.#clock.now();
        await (await this.#control()).extend(claim, this.#leaseMs);
        task.leaseEndMs = fromMs + this.#leaseMs;
      } catch (error) {
        if (isLeaseLost(error)) {
          aborting.abort(error);
          return;
        }
        this.#tell({ kind: 'trouble', error });
      }
    }
  }

  /** Resolves to false when there was nothing to settle any more, or it could not be done while the lease held. */
  async #settle(task: Task, settlement: Settlement): Promise<boolean> {
    for (let failures = 1; ; failures += 1) {
      try {
        await (await this.#control()).settle(task.claim, settlement);
        return true;
      } catch (error) {
        if (isLeaseLost(error)) return false;
        this.#tell({ kind: 'trouble', error });
        const delayMs = backoffMs(RECONNECT_BACKOFF, failures, this.#clock.random());
        const isTooLate = this.#clock.now() + delayMs >= task.leaseEndMs || this.#over.signal.aborted;
        // What the server refuses it refuses again; the lease runs out.
        if (isTooLate || sqlState(error)?.startsWith('22')) return false;
        await pause(this.#clock, delayMs, task.over.signal);
      }
    }
  }

  #tell(event: WorkerEvent): void {
    this.#options.onEvent?.(event);
  }
}
