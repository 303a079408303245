/** Bytes that arrived and were not taken yet; joins chunks only when a whole unit is there. */
export class ByteQueue {
  #chunks: Buffer[] = [];
  length = 0;

  push(chunk: Buffer): void {
    this.#chunks.push(chunk);
    this.length += chunk.length;
  }

  /** The first n bytes without taking them, or undefined when fewer are here. */
  peek(n: number): Buffer | undefined {
    if (this.length < n) return undefined;
    if (this.#chunks[0]!.length < n) this.#chunks = [Buffer.concat(this.#chunks)];
    return this.#chunks[0]!.subarray(0, n);
  }

  /** Takes the first n bytes, which must be here. */
  take(n: number): Buffer {
    const taken = this.peek(n)!;
    const rest = this.#chunks[0]!.subarray(n);
    if (rest.length) this.#chunks[0] = rest;
    else this.#chunks.shift();
    this.length -= n;
    return taken;
  }
}
