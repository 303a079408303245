/**
 * Credit for messages between publish and the broker's word, bounded in messages and in bytes (O4). One message larger
 * than the whole byte limit may go when it goes alone. `narrow` limits the window to one message until the broker has
 * confirmed again: after a stall the first row is the probe.
 */
export class Window {
  #messages = 0;
  #bytes = 0;
  #narrow = false;

  constructor(
    readonly maxMessages: number,
    readonly maxBytes: number,
  ) {}

  /** True when a message of this size may be published now. */
  hasRoomFor(bytes: number): boolean {
    if (this.#messages === 0) return true;
    return !this.#narrow && this.#messages < this.maxMessages && this.#bytes + bytes <= this.maxBytes;
  }

  take(bytes: number): void {
    this.#messages += 1;
    this.#bytes += bytes;
  }

  give(bytes: number): void {
    if (this.#messages === 0 || bytes > this.#bytes) throw new Error('window: more given back than taken');
    this.#messages -= 1;
    this.#bytes -= bytes;
  }

  narrow(): void {
    this.#narrow = true;
  }

  widen(): void {
    this.#narrow = false;
  }

  get isNarrow(): boolean {
    return this.#narrow;
  }

  get messages(): number {
    return this.#messages;
  }

  get bytes(): number {
    return this.#bytes;
  }
}
