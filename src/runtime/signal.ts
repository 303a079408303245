/** Wakes one waiter; a wake that comes before the wait is kept. */
export class Wakeup {
  #woken = false;
  #resolve: (() => void) | undefined;

  wake(): void {
    this.#woken = true;
    this.#resolve?.();
    this.#resolve = undefined;
  }

  async wait(): Promise<void> {
    if (!this.#woken) await new Promise<void>((resolve) => (this.#resolve = resolve));
    this.#woken = false;
  }
}

/** A condition that several may wait for; `notify` wakes all who wait now. Waiters look again at what they wait for. */
export class Condition {
  #waiters: (() => void)[] = [];

  notify(): void {
    const waiters = this.#waiters;
    if (waiters.length === 0) return;
    this.#waiters = [];
    for (const wake of waiters) wake();
  }

  wait(): Promise<void> {
    return new Promise((resolve) => this.#waiters.push(resolve));
  }
}

/** The first error ends the work: everything that waits learns of it. */
export class Failure {
  readonly #controller = new AbortController();

  /** Notes the error unless one was noted before. */
  fail(error: Error): void {
    if (!this.#controller.signal.aborted) this.#controller.abort(error);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  get error(): Error | undefined {
    return this.#controller.signal.aborted ? (this.#controller.signal.reason as Error) : undefined;
  }

  /** Throws the noted error, if any. */
  check(): void {
    if (this.error) throw this.error;
  }

  /** Settles as `work` does, or rejects as soon as the failure is noted; what the work does later is ignored. */
  race<T>(work: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const onAbort = (): void => reject(this.error ?? new Error('aborted'));
      if (this.signal.aborted) onAbort();
      // Why not Promise.race with one long-lived promise: it would keep every past waiter in memory.
      this.signal.addEventListener('abort', onAbort, { once: true });
      work.then(resolve, reject).finally(() => this.signal.removeEventListener('abort', onAbort));
    });
  }
}
