interface Call {
  /** Does the work; undefined once it is done. */
  run: (() => void) | undefined;
  answer: () => void;
  fail: (error: Error) => void;
}

/**
 * The calls that a session has made to one server, answered one after the other and only when the test says so. Each
 * takes two steps, the work and its answer, so that a session can be lost between the two.
 */
export class Calls {
  readonly #waiting: Call[] = [];
  #lost: Error | undefined;

  make<T>(work: () => T): Promise<T> {
    return new Promise((resolve, reject) => {
      if (this.#lost) {
        reject(this.#lost);
        return;
      }
      const call: Call = {
        run: () => {
          call.run = undefined;
          try {
            const result = work();
            call.answer = () => resolve(result);
          } catch (error) {
            call.answer = () => call.fail(error as Error);
          }
        },
        answer: () => undefined,
        fail: reject,
      };
      this.#waiting.push(call);
    });
  }

  /** Works on the oldest call, or answers it when the work is done. */
  step(): void {
    const call = this.#waiting[0];
    if (call?.run) call.run();
    else if (call) {
      this.#waiting.shift();
      call.answer();
    }
  }

  /** The connection is lost: nothing is answered any more. With `late` the server still does what it was asked. */
  lose(error: Error, late: boolean): void {
    this.#lost = error;
    for (const call of this.#waiting.splice(0)) {
      if (late) call.run?.();
      call.fail(error);
    }
  }

  get size(): number {
    return this.#waiting.length;
  }
}
