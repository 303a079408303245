/** Prints the story of the demo, with a status line under it that is repainted on a terminal and repeated elsewhere. */
export class Screen {
  readonly #began = performance.now();
  readonly #terminal = process.stdout.isTTY;
  #painted = false;
  #closed = false;

  /** One step of the story, with the time since the start. */
  step(text: string): void {
    this.line(`${this.#clock()}  ${text}`);
  }

  /** A remark that belongs to the step above it. */
  remark(text: string): void {
    this.line(`${' '.repeat(7)}${text}`);
  }

  line(text = ''): void {
    this.#write(`${text}\n`);
  }

  /** The latest figures: repainted in place on a terminal, a line of its own elsewhere. */
  status(text: string): void {
    const line = `${this.#clock()}  ${text}`;
    if (!this.#terminal) {
      this.#write(`${line}\n`);
      return;
    }
    this.#write(line.slice(0, (process.stdout.columns || 80) - 1));
    this.#painted = true;
  }

  /** Prints nothing more; what is under way may still want to. */
  close(): void {
    if (!this.#closed) this.#write('');
    this.#closed = true;
  }

  /** How often the status line is worth writing. */
  get statusEveryMs(): number {
    return this.#terminal ? 200 : 1000;
  }

  #write(text: string): void {
    if (this.#closed) return;
    process.stdout.write(this.#painted ? `\r\u001b[K${text}` : text);
    this.#painted = false;
  }

  #clock(): string {
    const seconds = Math.floor((performance.now() - this.#began) / 1000);
    return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}`.padStart(5);
  }
}

/** `12,345`, right-aligned. */
export function count(amount: number, width = 0): string {
  return amount.toLocaleString('en-US').padStart(width);
}

/** `0.8 s`. */
export function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`;
}
