import { describe, expect, it } from 'vitest';
import { Gate } from '../../../src/inbox/gate.js';
import { ManualClock, turn } from '../../support/manual-clock.js';

/** A table that keeps what the gate tells it, and refuses as often as it is told to. */
class Table {
  readonly told: unknown[] = [];
  refusals = 0;
  /** What is done and not answered. */
  silences = 0;
  readonly calls: number[] = [];

  break(reason: string): Promise<void> {
    return this.#tell(['broken', reason]);
  }
  mend(): Promise<void> {
    return this.#tell('mended');
  }
  async giveBack(owed: readonly { seq: bigint; attempts: number }[], call: number): Promise<number> {
    await this.#tell(owed.map(({ seq, attempts }) => [seq, attempts]));
    this.calls.push(call);
    if (this.silences > 0) {
      this.silences -= 1;
      throw new Error('no answer');
    }
    return owed.length;
  }

  #tell(what: unknown): Promise<void> {
    if (this.refusals > 0) {
      this.refusals -= 1;
      return Promise.reject(new Error('away'));
    }
    this.told.push(what);
    return Promise.resolve();
  }
}

function stage() {
  const clock = new ManualClock();
  const table = new Table();
  const warnings: string[] = [];
  const quiet = (): void => undefined;
  const log = { debug: quiet, info: quiet, warn: (_: object, text: string) => warnings.push(text), error: quiet };
  const gate = new Gate({ store: table, clock, log });
  /** Fails rows as the broken handler of an sql consumer does, until the gate is open. */
  const breakIt = (): void => {
    for (let seq = 1n; !gate.isOpen && seq < 100n; seq += 1n) {
      const ticket = gate.admit();
      if (ticket) gate.settleRow(ticket, { seq, verdict: 'broken', error: 'it is missing' });
    }
    expect(gate.isOpen).toBe(true);
  };
  return { clock, table, gate, warnings, breakIt };
}

describe('what a breaker has noted', () => {
  it('is said once as it opens, with what it gives back, again at each sweep, and taken back as it closes', async () => {
    const { clock, table, gate, breakIt } = stage();
    gate.renew();
    await turn();
    expect(table.told).toEqual([]);
    breakIt();
    await turn();
    const [owed, ...rest] = table.told;
    expect(owed).toEqual(expect.arrayContaining([[1n, 1]]));
    expect(rest).toEqual([['broken', 'it is missing']]);
    table.told.length = 0;
    gate.renew();
    await turn();
    expect(table.told).toEqual([['broken', 'it is missing']]);
    table.told.length = 0;
    clock.advance(600_000);
    const probe = gate.admit()!;
    gate.settle(probe, 1n, { kind: 'done' });
    await turn();
    expect(gate.isOpen).toBe(false);
    expect(table.told).toEqual(['mended']);
    table.told.length = 0;
    gate.renew();
    gate.leave();
    await turn();
    expect(table.told).toEqual([]);
  });

  it('is taken back by a process that ends, and that can be waited for', async () => {
    const { table, gate, breakIt } = stage();
    breakIt();
    await turn();
    table.told.length = 0;
    gate.leave();
    await gate.told();
    expect(table.told).toEqual(['mended']);
  });

  it('I4 what it gives back is told again until the table has it, each attempt once, and then the last word alone', async () => {
    const { clock, table, gate, warnings, breakIt } = stage();
    table.refusals = 3;
    breakIt();
    await turn();
    expect(table.told).toEqual([]);
    expect(gate.isGivenBack(1n)).toBe(true);
    gate.leave();
    for (let n = 0; n < 20; n += 1) {
      clock.advance(10_000);
      await turn();
    }
    expect(table.refusals).toBe(0);
    expect(table.told).toHaveLength(2);
    expect(table.told[0]).toEqual(expect.arrayContaining([[1n, 1]]));
    expect(table.told[1]).toBe('mended');
    expect(warnings).toEqual(['the state of the breaker cannot be written now; trying again']);
    expect(gate.isGivenBack(1n)).toBe(false);
  });

  it('I4 what was given back without an answer is asked for again in the same words; what came since, after that', async () => {
    const { clock, table, gate, breakIt } = stage();
    let chance = 0;
    clock.random = () => (chance += 0.001);
    table.silences = 1;
    breakIt();
    await turn();
    clock.advance(100);
    const probe = gate.admit();
    if (probe) throw new Error('too early for a probe');
    gate.settleRow({ period: 0 }, { seq: 1n, verdict: 'broken', error: 'from before' });
    for (let n = 0; n < 20; n += 1) {
      clock.advance(10_000);
      await turn();
    }
    const [first, again, later, note] = table.told;
    expect(again).toEqual(first);
    expect(later).toEqual([[1n, 1]]);
    expect(note).toEqual(['broken', 'it is missing']);
    const [firstCall, secondCall, laterCall] = table.calls;
    expect(secondCall).toBe(firstCall);
    expect(laterCall).not.toBe(firstCall);
    expect(gate.isGivenBack(1n)).toBe(false);
  });

  it('I4 an attempt that is being written is given back only when it is there', async () => {
    const { table, gate, breakIt } = stage();
    let written: () => void = () => undefined;
    gate.whileWriting(new Promise<void>((resolve) => (written = resolve)));
    breakIt();
    await turn();
    expect(table.told).toEqual([]);
    written();
    await gate.told();
    expect(table.told).toHaveLength(2);
  });
});
