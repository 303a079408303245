import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Ledger, type LedgerEntry } from '../../../src/core/ledger.js';
import type { Lsn } from '../../../src/core/lsn.js';
import { LedgerModel } from './ledger-model.js';

type Step =
  { kind: 'begin' | 'row' } | { kind: 'commit' | 'idle'; by: number } | { kind: 'decide' | 'settle'; which: number };

/** Each commit ends past what was before it: its own record takes room in the log. */
const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    { weight: 3, arbitrary: fc.record({ kind: fc.constant('begin' as const) }) },
    { weight: 5, arbitrary: fc.record({ kind: fc.constant('row' as const) }) },
    { weight: 4, arbitrary: fc.record({ kind: fc.constant('commit' as const), by: fc.integer({ min: 1, max: 9 }) }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('idle' as const), by: fc.integer({ min: -9, max: 99 }) }) },
    { weight: 4, arbitrary: fc.record({ kind: fc.constant('decide' as const), which: fc.nat() }) },
    { weight: 5, arbitrary: fc.record({ kind: fc.constant('settle' as const), which: fc.nat() }) },
  ),
  { maxLength: 80, size: 'max' },
);

/** Ledger and model side by side. Steps that make no sense at the moment are left out. */
class Pair {
  readonly #startLsn = 1000n;
  readonly ledger = new Ledger(this.#startLsn, 2);
  readonly model = new LedgerModel(this.#startLsn);
  readonly rows: { entry: LedgerEntry; place: [number, number] }[] = [];
  #open = false;
  #tail: Lsn = this.#startLsn;
  #lastSettled: Lsn = 0n;
  #lastDecided: Lsn = 0n;

  apply(step: Step): void {
    const pick = (state: LedgerEntry['state'][], which: number) => {
      const possible = this.rows.filter(({ entry }) => state.includes(entry.state));
      return possible[which % possible.length];
    };
    if (step.kind === 'begin' && !this.#open) {
      this.#open = true;
      this.ledger.begin();
      this.model.begin();
    } else if (step.kind === 'row' && this.#open) {
      // Not in the order of their commits.
      const seq = BigInt((this.rows.length * 7) % 31);
      this.rows.push({ entry: this.ledger.row(seq), place: this.model.row(seq) });
    } else if (step.kind === 'commit' && this.#open) {
      this.#open = false;
      this.#tail += BigInt(step.by);
      this.ledger.commit(this.#tail);
      this.model.commit(this.#tail);
    } else if (step.kind === 'idle' && this.model.isIdle) {
      const walEnd = this.#tail + BigInt(step.by);
      this.ledger.idle(walEnd);
      if (walEnd > this.#tail) {
        this.#tail = walEnd;
        this.model.idle(walEnd);
      }
    } else if (step.kind === 'decide') {
      const row = pick(['pending'], step.which);
      if (!row) return;
      this.ledger.decide(row.entry);
      this.model.set(row.place, 'decided');
    } else if (step.kind === 'settle') {
      const row = pick(['pending', 'decided'], step.which);
      if (!row) return;
      this.ledger.settle(row.entry);
      this.model.set(row.place, 'settled');
    }
  }

  compare(): void {
    expect(this.ledger.settledLsn).toBe(this.model.prefixEnd('settled'));
    expect(this.ledger.decidedLsn).toBe(this.model.prefixEnd('decided', 'settled'));
    const rowsEnd = this.model.rowsEnd('decided', 'settled');
    expect(this.ledger.decidedRowsLsn).toBe(rowsEnd ?? this.#startLsn);
    expect(this.ledger.isIdle).toBe(this.model.isIdle);
    expect(this.ledger.inTransaction).toBe(this.#open);
    expect(this.ledger.lowestSeq).toBe(this.model.lowestSeq);
    expect(this.ledger.unsettledRows).toBe(this.model.unsettledRows);
    for (const { entry, place } of this.rows) {
      if (entry.state !== 'settled') expect(entry.floorLsn).toBe(this.model.floor(place[0]));
    }
    expect(this.ledger.settledLsn).toBeGreaterThanOrEqual(this.#lastSettled);
    expect(this.ledger.decidedLsn).toBeGreaterThanOrEqual(this.#lastDecided);
    this.#lastSettled = this.ledger.settledLsn;
    this.#lastDecided = this.ledger.decidedLsn;
  }
}

test('O1, O2, F5: after any steps the ledger says what a naive list says, and never goes back', () => {
  fc.assert(
    fc.property(steps, (all) => {
      const pair = new Pair();
      for (const step of all) {
        pair.apply(step);
        pair.compare();
      }
    }),
    { numRuns: 1_000 },
  );
}, 60_000);

test('O1: everything committed and settled brings both positions to the end', () => {
  fc.assert(
    fc.property(steps, fc.infiniteStream(fc.nat()), (all, order) => {
      const pair = new Pair();
      for (const step of all) pair.apply(step);
      pair.apply({ kind: 'commit', by: 1 });
      for (let n = 0; n < pair.rows.length; n += 1) pair.apply({ kind: 'settle', which: Number(order.next().value) });
      pair.compare();
      expect(pair.ledger.isIdle).toBe(true);
      expect(pair.ledger.settledLsn).toBe(pair.ledger.decidedLsn);
      expect(pair.ledger.settledLsn).toBe(pair.model.prefixEnd('settled'));
    }),
  );
});

test('fact 59: an empty transaction moves the position when nothing is owed before it, and not when something is', () => {
  const ledger = new Ledger(10n);
  ledger.begin();
  ledger.commit(20n);
  expect(ledger.settledLsn).toBe(20n);
  ledger.begin();
  const entry = ledger.row();
  ledger.commit(30n);
  ledger.begin();
  ledger.commit(40n);
  expect(ledger.settledLsn).toBe(20n);
  ledger.decide(entry);
  expect([ledger.decidedLsn, ledger.settledLsn]).toEqual([40n, 20n]);
  ledger.settle(entry);
  expect(ledger.settledLsn).toBe(40n);
});

test('what cannot happen is refused loudly', () => {
  const ledger = new Ledger(10n);
  expect(() => ledger.row()).toThrow('outside');
  expect(() => ledger.commit(20n)).toThrow('outside');
  ledger.begin();
  expect(() => ledger.begin()).toThrow('inside');
  expect(() => ledger.idle(50n)).toThrow('idle');
  ledger.row();
  expect(() => ledger.commit(9n)).toThrow();
});

test('a row is decided once and settled once', () => {
  const ledger = new Ledger();
  ledger.begin();
  const entry = ledger.row();
  ledger.decide(entry);
  expect(() => ledger.decide(entry)).toThrow('decide');
  ledger.settle(entry);
  expect(() => ledger.settle(entry)).toThrow('twice');
  expect(() => ledger.decide(entry)).toThrow('decide');
});

test('O4: behind a row that somebody keeps locked, settled transactions do not fill memory', () => {
  const ledger = new Ledger(10n);
  const commit = (endLsn: bigint): LedgerEntry => {
    ledger.begin();
    const entry = ledger.row();
    ledger.commit(endLsn);
    return entry;
  };
  const locked = commit(20n);
  for (let n = 1n; n <= 10_000n; n += 1n) ledger.settle(commit(20n + n));
  expect(ledger.keptTransactions).toBeLessThan(2_000);
  expect([ledger.settledLsn, ledger.decidedLsn]).toEqual([10n, 10n]);
  ledger.decide(locked);
  expect([ledger.settledLsn, ledger.decidedLsn, ledger.decidedRowsLsn]).toEqual([10n, 10_020n, 10_020n]);
  ledger.settle(locked);
  expect([ledger.settledLsn, ledger.keptTransactions, ledger.isIdle]).toEqual([10_020n, 0, true]);
});
