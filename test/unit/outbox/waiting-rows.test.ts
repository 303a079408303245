import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import type { Due, Kept, WaitingRow, WaitingTable } from '../../../src/outbox/ports.js';
import { inHalves } from '../../../src/outbox/halves.js';
import { RefusedRows, REFUSED_RETRY_MS } from '../../../src/outbox/refused-rows.js';
import { WaitingRows } from '../../../src/outbox/waiting-rows.js';
import { ManualClock } from '../../support/manual-clock.js';

const refusal = (): Error =>
  Object.assign(new Error('kept'), { code: 'P0001', where: 'PL/pgSQL function public.keep()' });

type HeldRow = WaitingRow & { holdNo: number };

/** A table of rows that wait, some of which it refuses to change or leaves as they are. */
class TableOfWaiting implements WaitingTable {
  rows: HeldRow[] = [];
  refused = new Set<string>();
  silent = new Set<string>();
  /** Every statement fails, whatever its rows. */
  refusesAll = false;
  /** Thrown by the next statement. */
  throwNext: Error | undefined;
  statements = 0;
  #last = 0;

  add(n: number, key: string | null = null): void {
    for (let i = 0; i < n; i += 1) {
      const seq = String((this.#last += 1));
      this.rows.push({ seq, id: `id-${seq}`, key, type: 't', holdNo: this.#last });
    }
  }

  #change(rows: HeldRow[]): { gone: HeldRow[]; kept: Kept[] } {
    this.statements += 1;
    const error = this.throwNext;
    this.throwNext = undefined;
    if (error) throw error;
    if (this.refusesAll || rows.some(({ seq }) => this.refused.has(seq))) throw refusal();
    const gone = rows.filter(({ seq }) => !this.silent.has(seq));
    const kept = rows.filter(({ seq }) => this.silent.has(seq));
    const left = new Set(gone);
    this.rows = this.rows.filter((row) => !left.has(row));
    return { gone, kept: kept.map((row) => ({ row, refusal: { sqlState: null, trigger: 'keep on outbox' } })) };
  }

  #which(which: Parameters<WaitingTable['makeDue']>[0]): HeldRow[] {
    return 'only' in which
      ? this.rows.filter(({ seq }) => which.only.includes(seq))
      : this.rows.filter(({ seq }) => !which.without.includes(seq)).slice(0, which.limit);
  }

  makeDue(which: Parameters<WaitingTable['makeDue']>[0]): Promise<Due> {
    return Promise.resolve().then(() => {
      const { gone, kept } = this.#change(this.#which(which));
      return { rows: gone.map(({ seq }) => ({ seq, bytes: 1 })), placed: [], kept };
    });
  }

  dueRows(limit: number, without: readonly string[]): Promise<WaitingRow[]> {
    return Promise.resolve(this.#which({ limit, without }));
  }

  release(...[keys, , rowsPerKey, without]: Parameters<WaitingTable['release']>): ReturnType<WaitingTable['release']> {
    return Promise.resolve().then(() => {
      const runs = keys.map(({ key, after }) => {
        const held = this.rows.filter((row) => row.key === key && BigInt(row.holdNo) > after);
        const end = held.findIndex(({ seq }) => without.includes(seq));
        return { key, held, run: held.slice(0, Math.min(end < 0 ? held.length : end, rowsPerKey)), isLocked: end >= 0 };
      });
      const { kept } = this.#change(runs.flatMap(({ run }) => run));
      return new Map(
        runs.map(({ key, held, run, isLocked }) => {
          const first = run.findIndex(({ seq }) => this.silent.has(seq));
          const rows = (first < 0 ? run : run.slice(0, first)).map(({ seq }) => ({ seq, bytes: 1 }));
          const stays = kept.find(({ row }) => row.seq === run[first]?.seq) ?? null;
          return [key, { rows, remains: rows.length < held.length, isLocked: isLocked || stays !== null, kept: stays }];
        }),
      );
    });
  }

  headOf({ key, after }: { key: string; after: bigint }): Promise<WaitingRow | undefined> {
    return Promise.resolve(this.rows.find((row) => row.key === key && BigInt(row.holdNo) > after));
  }

  reblock(only?: readonly string[]): Promise<void> {
    const rows = this.rows;
    return Promise.resolve().then(() => {
      this.#change(only ? this.#which({ only }) : this.rows);
      this.rows = rows;
    });
  }

  lastHoldNo(): Promise<bigint> {
    return Promise.resolve(BigInt(Math.max(0, ...this.rows.map(({ holdNo }) => holdNo))));
  }

  unblock(which: Parameters<WaitingTable['unblock']>[0]): Promise<{ rows: number; kept: Kept[] }> {
    return Promise.resolve().then(() => {
      const { gone, kept } = this.#change(this.#which(which));
      return { rows: gone.length, kept };
    });
  }

  placedRows(_states: readonly string[], limit: number | null, without: readonly string[]): Promise<WaitingRow[]> {
    return Promise.resolve(this.#which({ limit: limit ?? Infinity, without }));
  }
}

function bench() {
  const table = new TableOfWaiting();
  const clock = new ManualClock();
  const errors: Record<string, unknown>[] = [];
  const silent = (): undefined => undefined;
  const log = { debug: silent, info: silent, warn: silent, error: (fields: object) => void errors.push({ ...fields }) };
  const refused = new RefusedRows(clock, log);
  const waiting = new WaitingRows(table, refused, log);
  /** As the relay does it each second: until nothing more goes. */
  const round = async (): Promise<string[]> => {
    const gone: string[] = [];
    for (let more = true; more;) {
      const due = await waiting.due(500);
      gone.push(...due.rows.map(({ seq }) => seq));
      more = due.more;
    }
    return gone;
  };
  return { table, clock, errors, refused, waiting, round };
}

test('3.6: rows are found by halves: exactly those that are refused, and all others get through', async () => {
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 1, max: 300 }), fc.array(fc.nat(299), { maxLength: 12 }), async (n, bad) => {
      const refused = new Set(bad.filter((each) => each < n));
      const done: number[] = [];
      const found: number[] = [];
      let statements = 0;
      const rows = Array.from({ length: n }, (_, i) => i);
      const stopped = await inHalves(
        rows,
        Infinity,
        (part) => {
          statements += 1;
          if (part.some((each) => refused.has(each))) return Promise.reject(refusal());
          done.push(...part);
          return Promise.resolve();
        },
        (row) => found.push(row),
      );
      expect(stopped).toBeUndefined();
      expect(new Set(found)).toEqual(refused);
      // In their order, each once.
      expect(done).toEqual(rows.filter((row) => !refused.has(row)));
      expect(found).toEqual([...refused].sort((a, b) => a - b));
      expect(statements).toBeLessThanOrEqual(2 + refused.size * 2 * (Math.ceil(Math.log2(n)) + 1));
    }),
  );
});

test('3.6: 100,000 rows due at one moment with three refused ones among them cost few statements more', async () => {
  const { table, round, refused, errors } = bench();
  table.add(100_000);
  table.refused = new Set(['1', '50000', '99999']);
  expect((await round()).length).toBe(99_997);
  expect(table.statements).toBeLessThan(200 + 3 * 25);
  expect([refused.size, errors.length]).toEqual([3, 3]);
  expect(errors[0]).toMatchObject({ messageId: 'id-1', seq: '1', sqlState: 'P0001', refusedRows: 1 });
});

test('3.6: a refused row is told once, tried again after 30 s, and goes once it may; those that come meanwhile go at once', async () => {
  const { table, clock, round, refused, errors } = bench();
  table.add(3);
  table.refused.add('2');
  expect(await round()).toEqual(['1', '3']);
  table.add(2);
  const before = table.statements;
  expect(await round()).toHaveLength(2);
  // The others without it, and that there are no more: nothing is tried that is known to fail.
  expect(table.statements - before).toBe(2);
  clock.advance(REFUSED_RETRY_MS - 1);
  expect(await round()).toEqual([]);
  clock.advance(1);
  expect(await round()).toEqual([]);
  expect([errors.length, refused.size, refused.example?.seq]).toEqual([1, 1, '2']);
  table.refused.clear();
  clock.advance(REFUSED_RETRY_MS);
  expect(await round()).toEqual(['2']);
  expect([refused.size, refused.example]).toEqual([0, null]);
});

test('3.6: a row that a trigger silently keeps is told as that, and does not spin', async () => {
  const { table, round, refused, errors } = bench();
  table.add(600);
  table.silent.add('7');
  expect((await round()).length).toBe(599);
  expect(table.statements).toBeLessThan(6);
  expect(errors).toMatchObject([{ seq: '7', sqlState: null, trigger: 'keep on outbox' }]);
  expect(refused.size).toBe(1);
});

test('3.6: thousands of refused rows leave the way free for others, and are tried again a few at a time', async () => {
  const { table, clock, round, refused } = bench();
  table.add(3_000);
  table.refused = new Set(table.rows.map(({ seq }) => seq));
  table.add(1);
  expect(await round()).toEqual(['3001']);
  expect(refused.size).toBe(3_000);
  clock.advance(REFUSED_RETRY_MS);
  const before = table.statements;
  table.rows.push({ seq: 'new', id: 'new', key: null, type: 't', holdNo: 9_999 });
  expect(await round()).toEqual(['new']);
  expect(table.statements - before).toBeLessThan(500);
});

test('a statement that is refused whatever its rows is told once, blames no row and rests', async () => {
  const { table, clock, round, refused, errors } = bench();
  table.add(1_000);
  table.refusesAll = true;
  expect(await round()).toEqual([]);
  expect(table.statements).toBeLessThan(20);
  expect([refused.size, errors.length, refused.statements.first?.sqlState]).toEqual([0, 1, 'P0001']);
  const before = table.statements;
  expect(await round()).toEqual([]);
  expect(table.statements).toBe(before);
  table.refusesAll = false;
  clock.advance(REFUSED_RETRY_MS);
  expect((await round()).length).toBe(1_000);
  expect(refused.statements.first).toBeNull();
});

test('F61: a lock timeout is not the fault of a row: it is tried again', async () => {
  const { table, round, refused } = bench();
  table.add(2);
  table.throwNext = Object.assign(new Error('lock timeout'), { code: '55P03' });
  expect(await round()).toEqual([]);
  expect(refused.size).toBe(0);
  expect(await round()).toEqual(['1', '2']);
});

const questions = (...keys: string[]): { key: string; after: bigint }[] => keys.map((key) => ({ key, after: 0n }));
const given = (answers: Map<string, { rows: { seq: string }[] }>): string[] =>
  [...answers.values()].flatMap(({ rows }) => rows.map(({ seq }) => seq));

test.each(['refused', 'silent'] as const)(
  '3.5: nothing of a key overtakes a %s row; other keys go, and the key is asked again once it may be tried',
  async (how) => {
    const { table, clock, waiting, refused, errors } = bench();
    for (const key of ['a', 'b', 'c']) table.add(5, key);
    table[how].add('8');
    const gone: string[] = [];
    let after = 0n;
    for (let n = 0; n < 5; n += 1) {
      const asked = questions('a', 'b', 'c').map((each) => (each.key === 'b' ? { ...each, after } : each));
      const before = table.statements;
      const { answers, again } = await waiting.release(asked, null, 4);
      // What is known to be refused is left out, and costs nothing more.
      if (n > 2) expect(table.statements - before).toBe(1);
      gone.push(...given(answers));
      after = BigInt(Math.max(0, ...(answers.get('b')?.rows ?? []).map(({ seq }) => Number(seq)), Number(after)));
      if (n > 2) expect(again).toEqual([]);
    }
    expect(gone.filter((seq) => Number(seq) > 5 && Number(seq) < 11)).toEqual(['6', '7']);
    expect(gone.length).toBe(12);
    expect([refused.size, errors.length, waiting.ripeKeys]).toEqual([1, 1, []]);
    expect(errors[0]).toMatchObject({ seq: '8', key: 'b' });
    clock.advance(REFUSED_RETRY_MS);
    expect(waiting.ripeKeys).toEqual(['b']);
    table[how].clear();
    const { answers } = await waiting.release(questions('b'), null, 4);
    // One that a trigger kept may have left those behind it changed, never sent.
    expect(given(answers)[0]).toBe('8');
    expect([refused.size, waiting.ripeKeys]).toEqual([0, []]);
  },
);

test('3.5: a release that is refused whatever the keys rests, and asks again', async () => {
  const { table, waiting, refused } = bench();
  table.add(2, 'a');
  table.refusesAll = true;
  const { answers, again, restMs } = await waiting.release(questions('a'), null, 4);
  expect([answers.size, again, restMs]).toEqual([0, ['a'], REFUSED_RETRY_MS]);
  const before = table.statements;
  await waiting.release(questions('a'), null, 4);
  expect([table.statements, refused.size]).toEqual([before, 0]);
});

test('3.5: a session begins although a row is refused that is to be put back, or freed', async () => {
  const { table, clock, waiting, refused } = bench();
  table.add(50, 'a');
  table.refused.add('20');
  expect(await waiting.reblock()).toBe(50n);
  expect(refused.size).toBe(1);
  const other = bench();
  other.table.add(50, 'a');
  other.table.refused.add('20');
  other.table.silent.add('30');
  expect(await other.waiting.unblock()).toBe(48);
  expect([other.refused.size, other.waiting.mayUnblock]).toEqual([2, false]);
  other.clock.advance(REFUSED_RETRY_MS);
  expect(other.waiting.mayUnblock).toBe(true);
  other.table.refused.clear();
  other.table.silent.clear();
  expect(await other.waiting.unblock()).toBe(2);
  expect([other.refused.size, other.waiting.mayUnblock]).toEqual([0, false]);
  clock.advance(1);
});

test('3.5: a session begins although all of this is refused, whatever the rows; the freeing is tried again', async () => {
  const { table, clock, waiting, refused, errors } = bench();
  table.add(5, 'a');
  table.refusesAll = true;
  expect(await waiting.reblock()).toBe(5n);
  expect([errors.length, refused.size, refused.statements.first]).toEqual([1, 0, null]);
  expect([await waiting.unblock(), waiting.mayUnblock]).toEqual([0, false]);
  expect([errors.length, refused.size, refused.statements.first?.sqlState]).toEqual([2, 0, 'P0001']);
  clock.advance(REFUSED_RETRY_MS);
  expect(waiting.mayUnblock).toBe(true);
  table.refusesAll = false;
  expect([await waiting.unblock(), waiting.mayUnblock, refused.statements.first]).toEqual([5, false, null]);
});
