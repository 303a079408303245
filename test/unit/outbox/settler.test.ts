import { expect, test } from 'vitest';
import { WaybillError } from '../../../src/core/errors.js';
import { Ledger } from '../../../src/core/ledger.js';
import { Works, type Work } from '../../../src/outbox/work.js';
import { turn } from '../../support/manual-clock.js';
import { INTERVAL_MS, SettlerBench } from './settler-bench.js';

const lockTimeout = (): Error =>
  new WaybillError('WAYBILL_DATABASE_FAILED', 'settling', {
    cause: Object.assign(new Error('lock timeout'), { code: '55P03' }),
  });
const refusal = (code: string, of: object): Error =>
  new WaybillError('WAYBILL_DATABASE_FAILED', 'writing a row back', {
    cause: Object.assign(new Error('refused'), { code, ...of }),
  });
const parked = { state: 'parked', attempts: 1, error: 'bad', delayMs: null } as const;

test('O6: rows settle at the interval, in one statement, and only its answer is reported', async () => {
  const bench = new SettlerBench();
  const [a, b] = bench.transaction(110n, 2);
  bench.settler.settle(a!, 'published');
  bench.clock.advance(INTERVAL_MS - 1);
  expect(bench.calls.size).toBe(0);
  bench.settler.settle(b!, 'published');
  bench.clock.advance(1);
  await turn();
  bench.calls.step();
  await turn();
  expect(bench.settles).toEqual([{ what: 'settle', seqs: ['1', '2'], candidate: 110n, durable: false }]);
  expect(bench.reported).toEqual([]);
  await bench.answer();
  expect(bench.reported).toEqual([110n]);
  expect([bench.works.size, bench.settler.isIdle]).toEqual([0, true]);
});

test('O1: the candidate never passes a row whose word is still to come', async () => {
  const bench = new SettlerBench();
  const [a] = bench.transaction(110n, 2);
  const [c] = bench.transaction(120n, 1);
  bench.settler.settle(a!, 'published');
  bench.settler.settle(c!, 'published');
  await bench.cycle();
  expect(bench.settles.map(({ candidate }) => candidate)).toEqual([100n]);
});

test('O1: the candidate never passes confirmed rows that did not fit into the statement', async () => {
  const bench = new SettlerBench();
  for (const work of [...bench.transaction(110n, 9_999), ...bench.transaction(120n, 2)]) {
    bench.settler.settle(work, 'published');
  }
  await bench.answer();
  await bench.cycle();
  expect(bench.settles.map(({ seqs, candidate }) => [seqs.length, candidate])).toEqual([
    [10_000, 110n],
    [1, 120n],
  ]);
});

test('one cycle runs at a time, whatever comes in meanwhile', async () => {
  const bench = new SettlerBench();
  const works = bench.transaction(110n, 3);
  bench.settler.settle(works[0]!, 'published');
  bench.clock.advance(INTERVAL_MS);
  await turn();
  bench.settler.hold(works[1]!, parked);
  bench.settler.settle(works[2]!, 'published');
  bench.clock.advance(INTERVAL_MS * 5);
  await turn();
  expect(bench.calls.size).toBe(1);
  await bench.answer();
  await bench.cycle();
  expect(bench.asked.map(({ what, seqs }) => [what, seqs])).toEqual([
    ['settle', ['1']],
    ['hold', ['2']],
    ['settle', ['3']],
  ]);
  expect(bench.reported.at(-1)).toBe(110n);
});

test('F112: rows that were settled before their commit came move the checkpoint when it comes', async () => {
  const bench = new SettlerBench();
  bench.ledger.begin();
  bench.settler.settle(bench.row(), 'published');
  await bench.cycle();
  expect(bench.reported).toEqual([100n]);
  bench.ledger.commit(110n);
  bench.settler.committed();
  await bench.cycle();
  expect(bench.reported).toEqual([100n, 110n]);
});

test('F112: also when the commit comes while the statement is under way', async () => {
  const bench = new SettlerBench();
  bench.ledger.begin();
  bench.settler.settle(bench.row(), 'published');
  bench.clock.advance(INTERVAL_MS);
  await turn();
  bench.ledger.commit(110n);
  bench.settler.committed();
  await bench.answer();
  const flushed = bench.settler.flush(new AbortController().signal);
  await bench.answer();
  await flushed;
  expect(bench.reported.at(-1)).toBe(110n);
});

test('3.3: empty transactions never cause a checkpoint', async () => {
  const bench = new SettlerBench();
  const [work] = bench.transaction(110n, 1);
  bench.settler.settle(work!, 'published');
  await bench.cycle();
  for (let endLsn = 120n; endLsn < 200n; endLsn += 10n) {
    bench.transaction(endLsn, 0);
    await bench.cycle();
  }
  expect([bench.settles.length, bench.clock.pending]).toEqual([1, 0]);
});

test('facts 53, 75: a row that the delete does not find holds its position back until it is known why', async () => {
  const bench = new SettlerBench();
  const [a] = bench.transaction(110n, 1);
  const [b] = bench.transaction(120n, 1);
  bench.missing.add('1');
  bench.whereabouts = 'undecided';
  bench.settler.settle(a!, 'published');
  bench.settler.settle(b!, 'published');
  for (let n = 0; n < 3; n += 1) await bench.cycle();
  expect(new Set(bench.reported)).toEqual(new Set([100n]));
  expect(bench.settles.length).toBe(1);
  bench.missing.clear();
  bench.whereabouts = 'present';
  await bench.cycle();
  expect(bench.settles.map(({ seqs }) => seqs)).toEqual([['1', '2'], ['1']]);
  expect(bench.reported.at(-1)).toBe(120n);
});

test('fact 16: a published row that its application deleted is noted as gone; a held one is written back', async () => {
  const bench = new SettlerBench();
  const [a, b] = bench.transaction(110n, 2);
  bench.missing = new Set(['1', '2']);
  bench.whereabouts = 'gone';
  bench.settler.settle(a!, 'published');
  bench.settler.hold(b!, parked);
  await bench.answer();
  await bench.cycle();
  await bench.cycle();
  const what = bench.asked.map((each) => `${each.what} ${each.seqs.join()}`.trim());
  expect(what.sort()).toEqual(['gone 1', 'hold 2', 'note', 'settle', 'settle 1', 'write back 2'].sort());
  expect(bench.reported.at(-1)).toBe(110n);
  expect(bench.counters).toMatchObject({ gone: 1, parked: 1, settled: 2 });
});

test('fact 16: that an application deletes its rows is noted before they are written back, also when all of them are held', async () => {
  const bench = new SettlerBench();
  const [a, b] = bench.transaction(110n, 2);
  bench.missing = new Set(['1', '2']);
  bench.whereabouts = 'gone';
  bench.settler.hold(a!, parked);
  bench.settler.hold(b!, { ...parked, state: 'scheduled', error: null });
  await bench.answer();
  for (let n = 0; n < 3; n += 1) await bench.cycle();
  const what = bench.asked.map((each) => each.what).filter((each) => each !== 'hold' && each !== 'settle');
  expect(what).toEqual(['note', 'write back', 'write back']);
  expect(bench.reported.at(-1)).toBe(110n);
});

test('fact 16: nothing is noted for held rows that an earlier session may have settled, or that the table brought', async () => {
  const bench = new SettlerBench();
  const [a] = bench.transaction(110n, 1);
  bench.missing = new Set(['1', '2']);
  bench.whereabouts = 'gone';
  bench.settler.hold(Object.assign(a!, { replayed: true }), parked);
  bench.settler.hold(bench.tableRow(), parked);
  await bench.answer();
  for (let n = 0; n < 3; n += 1) await bench.cycle();
  expect(bench.asked.filter(({ what }) => what === 'write back').length).toBe(2);
  expect(bench.asked.map(({ what }) => what)).not.toContain('note');
});

test.each([
  ['23514', { constraint: 'my_check' }],
  ['23502', { column: 'tenant' }],
  ['22001', {}],
  ['P0001', {}],
])(
  'a gone row that the table does not take back (%s) keeps its position, is told, and stops no other',
  async (code, told) => {
    const bench = new SettlerBench();
    const [good] = bench.transaction(110n, 1);
    const works = bench.transaction(120n, 3);
    const [later] = bench.transaction(130n, 1);
    bench.missing = new Set(['2', '3', '4']);
    bench.whereabouts = 'gone';
    bench.refused.set('3', refusal(code, told));
    for (const work of works) bench.settler.hold(work, parked);
    for (const work of [good!, later!]) bench.settler.settle(work, 'published');
    for (let n = 0; n < 10; n += 1) await bench.cycle();
    const back = (): string[] => bench.asked.filter(({ what }) => what === 'write back').flatMap(({ seqs }) => seqs);
    expect([bench.failure, back()]).toEqual([undefined, ['2', '3', '4']]);
    expect(bench.counters).toMatchObject({ parked: 2, settled: 4 });
    expect([bench.reported.at(-1), bench.works.size, bench.settler.isIdle]).toEqual([110n, 1, false]);
    expect(bench.errors.filter((fields) => 'sqlState' in fields)).toEqual([
      expect.objectContaining({ seq: '3', messageId: 'id-3', sqlState: code, ...told }),
    ]);
    // Tried again from time to time, and written back once the constraint is gone.
    bench.clock.advance(30_000);
    for (let n = 0; n < 3; n += 1) await bench.cycle();
    expect(back()).toEqual(['2', '3', '4', '3']);
    // Each row is told at once, and then one of them at most once a minute.
    expect(bench.errors.filter((fields) => 'sqlState' in fields).length).toBe(1);
    for (let atMs = 0; atMs < 300_000; atMs += 10_000) {
      bench.clock.advance(10_000);
      await bench.cycle();
    }
    expect(bench.errors.filter((fields) => 'sqlState' in fields).length).toBeLessThanOrEqual(6);
    expect(bench.settler.outOfReach).toMatchObject({
      locked: 0,
      refused: 1,
      refusal: { messageId: 'id-3', seq: '3', sqlState: code, ...told },
    });
    expect([bench.reported.at(-1), bench.failure]).toEqual([110n, undefined]);
    bench.refused.clear();
    bench.clock.advance(30_000);
    for (let n = 0; n < 3; n += 1) await bench.cycle();
    expect([bench.reported.at(-1), bench.works.size, bench.settler.isIdle]).toEqual([130n, 0, true]);
    expect(bench.settler.outOfReach).toMatchObject({ refused: 0, refusal: null });
  },
);

test('a row that a trigger does not let the relay hold keeps its position, and no other; those behind it in its lane wait', async () => {
  const bench = new SettlerBench();
  const works = bench.transaction(110n, 2);
  const [later] = bench.transaction(120n, 1);
  const polled = [bench.polledRow('k', 1n), bench.polledRow('k', 2n), bench.polledRow('other', 3n)];
  for (const seq of ['2', '4']) bench.refused.set(seq, refusal('42501', { where: 'PL/pgSQL function' }));
  for (const work of [...works, ...polled]) bench.settler.hold(work, parked);
  bench.settler.settle(later!, 'published');
  for (let n = 0; n < 10; n += 1) await bench.cycle();
  expect([bench.failure, bench.reported.at(-1)]).toEqual([undefined, 100n]);
  const left = ['2', '4', '5'].map((seq) => bench.works.has(seq));
  expect([left, bench.works.size, bench.settler.outOfReach.refused]).toEqual([[true, true, true], 3, 2]);
  // It is there, and nobody has locked it.
  expect(bench.settler.outOfReach.locked).toBe(0);
  bench.refused.clear();
  bench.clock.advance(30_000);
  for (let n = 0; n < 5; n += 1) await bench.cycle();
  const held = bench.asked.filter(({ what }) => what === 'hold').flatMap(({ seqs }) => seqs);
  expect([held.lastIndexOf('4') < held.lastIndexOf('5'), bench.works.size]).toEqual([true, 0]);
  expect(bench.reported.at(-1)).toBe(120n);
});

test('3.8: published rows that the table does not let go are told, and stop neither others nor the position', async () => {
  const bench = new SettlerBench();
  const first = bench.transaction(110n, 40);
  const second = bench.transaction(120n, 60);
  for (const seq of ['50', '51', '93']) bench.refused.set(seq, refusal('23503', { constraint: 'fk', table: 'orders' }));
  for (const work of [...first, ...second]) bench.settler.settle(work, 'published');
  for (let n = 0; n < 5; n += 1) await bench.cycle();
  expect([bench.failure, bench.works.size, bench.reported.at(-1)]).toEqual([undefined, 3, 120n]);
  // By halves, not one by one.
  expect(bench.settles.length).toBeLessThan(45);
  expect(bench.settler.outOfReach).toMatchObject({ locked: 0, refused: 3, refusal: { seq: '50', constraint: 'fk' } });
  const told = bench.errors.filter((fields) => 'sqlState' in fields);
  expect(told.map((fields) => 'seq' in fields && fields.seq)).toEqual(['50', '51', '93']);
  expect(told[0]).toMatchObject({ table: 'orders', messageId: 'id-50', sqlState: '23503' });
  // They rest: nothing is asked about them, and others come and go.
  const settles = bench.settles.length;
  const [later] = bench.transaction(130n, 1);
  bench.settler.settle(later!, 'published');
  for (let n = 0; n < 5; n += 1) await bench.cycle();
  expect([bench.settles.length, bench.works.size, bench.reported.at(-1)]).toEqual([settles + 1, 3, 130n]);
  bench.refused.clear();
  bench.clock.advance(30_000);
  for (let n = 0; n < 3; n += 1) await bench.cycle();
  expect([bench.works.size, bench.reported.at(-1), bench.settler.isIdle]).toEqual([0, 130n, true]);
  expect(bench.settler.outOfReach).toMatchObject({ refused: 0, refusal: null });
});

test('of very many rows that the table does not let go some hundreds are found at a time, and held rows come between', async () => {
  const bench = new SettlerBench();
  const works = bench.transaction(110n, 601);
  const last = works.pop();
  for (const { row } of works) bench.refused.set(row.seq, refusal('P0001', {}));
  for (const work of works) bench.settler.settle(work, 'published');
  bench.clock.advance(INTERVAL_MS);
  await turn();
  bench.settler.hold(last!, parked);
  for (let n = 0; n < 145 && bench.settler.outOfReach.refused < 600; n += 1) await bench.cycle();
  expect([bench.failure, bench.settler.outOfReach.refused, bench.works.size]).toEqual([undefined, 600, 600]);
  const held = bench.asked.findIndex(({ what }) => what === 'hold');
  expect(held).toBeLessThan(450);
  expect(bench.reported.every((lsn) => lsn === 100n)).toBe(true);
});

test('also a row that is gone and that the history refuses, and one that gets no new place', async () => {
  const bench = new SettlerBench();
  bench.ledger.begin();
  const gone = [bench.row(), bench.row(), bench.row()];
  const placed = [bench.keyedRow('k', 1n), bench.keyedRow('other', 2n)];
  bench.ledger.commit(110n);
  bench.missing = new Set(['1', '2', '3']);
  bench.whereabouts = 'gone';
  for (const seq of ['2', '4']) bench.refused.set(seq, refusal('23514', { constraint: 'history_check' }));
  for (const work of gone) bench.settler.settle(work, 'published');
  for (const work of placed) bench.settler.place(work);
  for (let n = 0; n < 5; n += 1) await bench.cycle();
  expect([bench.failure, bench.works.size, bench.reported.at(-1)]).toEqual([undefined, 2, 100n]);
  expect([bench.counters.gone, bench.settler.outOfReach.refused]).toEqual([2, 2]);
  bench.refused.clear();
  bench.clock.advance(30_000);
  for (let n = 0; n < 3; n += 1) await bench.cycle();
  expect([bench.works.size, bench.reported.at(-1), bench.counters.gone]).toEqual([0, 110n, 3]);
});

test('F9: a stop does not wait for rows that the table refuses', async () => {
  const bench = new SettlerBench();
  const [work, good] = bench.transaction(110n, 2);
  bench.missing.add('1');
  bench.whereabouts = 'gone';
  bench.refused.set('1', refusal('23514', {}));
  bench.settler.hold(work!, parked);
  bench.settler.settle(good!, 'published');
  const flushed = bench.settler.flush(new AbortController().signal, 'refused');
  for (let n = 0; n < 3; n += 1) await bench.cycle();
  await flushed;
  expect([bench.works.size, bench.settler.isIdle, bench.reported.at(-1)]).toEqual([1, false, 100n]);
});

test('3.3: rows that somebody keeps locked are told with whoever has locked them, and again once a minute', async () => {
  const bench = new SettlerBench();
  const [row] = bench.transaction(110n, 1);
  bench.missing.add('1');
  bench.holders = [{ pid: 4711, user: 'app', application: 'psql', prepared: null }];
  bench.settler.settle(row!, 'published');
  const told = (): number => bench.warnings.filter((text) => text.includes('locked them')).length;
  for (let atMs = 0; atMs < 4_000; atMs += 200) await bench.cycle();
  expect([told(), bench.settler.outOfReach.locked]).toEqual([0, 0]);
  for (let atMs = 4_000; atMs < 50_000; atMs += 200) await bench.cycle();
  expect([told(), bench.settler.outOfReach]).toMatchObject([1, { locked: 1, holders: bench.holders }]);
  expect(bench.settler.outOfReach.lockedForMs).toBeGreaterThan(40_000);
  expect(bench.asked.filter(({ what }) => what === 'holders').length).toBeLessThanOrEqual(6);
  bench.missing.clear();
  await bench.cycle();
  expect(bench.settler.outOfReach).toMatchObject({ locked: 0, lockedForMs: 0, holders: [] });
  expect([bench.works.size, bench.reported.at(-1)]).toEqual([0, 110n]);
});

test('3.8: a published row that somebody keeps locked holds no position once it was seen in the table; one to be held does', async () => {
  const bench = new SettlerBench();
  const [published] = bench.transaction(110n, 1);
  const [held] = bench.transaction(120n, 1);
  bench.transaction(130n, 0);
  bench.missing = new Set(['1', '2']);
  bench.settler.settle(published!, 'published');
  bench.settler.hold(held!, parked);
  await bench.answer();
  expect(bench.reported.at(-1) ?? 100n).toBe(100n);
  for (let n = 0; n < 3; n += 1) await bench.cycle();
  expect([bench.reported.at(-1), bench.works.size, bench.settler.keepingPosition]).toEqual([110n, 2, 1]);
  // Too much of the log is kept for it, and it is in the table.
  bench.settler.letHeldPass(true);
  for (let n = 0; n < 3; n += 1) await bench.cycle();
  expect([bench.reported.at(-1), bench.works.size, bench.settler.keepingPosition]).toEqual([130n, 2, 0]);
  expect(bench.ledger.isIdle).toBe(true);
  bench.missing.clear();
  for (let n = 0; n < 3; n += 1) await bench.cycle();
  expect([bench.works.size, bench.settler.isIdle]).toEqual([0, true]);
});

test('3.8: a row that only the log has keeps its position, whatever it costs', async () => {
  const bench = new SettlerBench();
  const [held] = bench.transaction(110n, 1);
  bench.missing.add('1');
  bench.whereabouts = 'gone';
  bench.refused.set('1', refusal('23514', {}));
  bench.settler.letHeldPass(true);
  bench.settler.hold(held!, parked);
  for (let n = 0; n < 200; n += 1) await bench.cycle();
  expect([bench.reported.at(-1) ?? 100n, bench.settler.keepingPosition]).toEqual([100n, 1]);
});

test('3.4: a flush of the table pass leaves what is out of reach, but no row that holds its key', async () => {
  const bench = new SettlerBench();
  const works = [bench.tableRow(), bench.tableRow(), bench.tableRow()];
  bench.missing.add('1');
  bench.refused.set('2', refusal('P0001', {}));
  for (const work of works) bench.settler.settle(work, 'published');
  const none = new AbortController().signal;
  let flushed = false;
  const flushing = bench.settler.flush(none, 'out of reach').then(() => (flushed = true));
  await bench.answer();
  // It may have been deleted by its application.
  expect(flushed).toBe(false);
  await bench.cycle();
  expect([flushed, bench.works.size]).toEqual([true, 2]);
  await flushing;
  bench.settler.streamFrom(new Ledger(500n), 500n);
  // They hold no position, and are settled when they can be.
  expect(bench.settler.lowestSeqAhead(499n)).toBeUndefined();
  bench.missing.clear();
  bench.refused.clear();
  bench.clock.advance(30_000);
  for (let n = 0; n < 3; n += 1) await bench.cycle();
  expect([bench.works.size, bench.settler.isIdle]).toEqual([0, true]);

  const strict = new SettlerBench();
  strict.missing.add('1');
  strict.settler.hold(strict.polledRow('k', 1n), parked);
  let passed = false;
  const passing = strict.settler.flush(none, 'out of reach').then(() => (passed = true));
  for (let n = 0; n < 5; n += 1) await strict.cycle();
  expect(passed).toBe(false);
  strict.missing.clear();
  await strict.cycle();
  expect(passed).toBe(true);
  await passing;
});

test('3.5 strict: behind a row that the table does not take back, its lane waits; others do not', async () => {
  const bench = new SettlerBench();
  bench.whereabouts = 'gone';
  const works = [bench.polledRow('k', 1n), bench.polledRow('k', 2n), bench.polledRow('other', 3n)];
  bench.missing = new Set(['1', '2', '3']);
  bench.refused.set('1', refusal('23514', {}));
  for (const work of works) bench.settler.hold(work, { ...parked, state: 'blocked' });
  for (let n = 0; n < 5; n += 1) await bench.cycle();
  const back = (): string[] => bench.asked.filter(({ what }) => what === 'write back').flatMap(({ seqs }) => seqs);
  expect([bench.failure, back()]).toEqual([undefined, ['1', '3']]);
  bench.refused.clear();
  bench.clock.advance(30_000);
  for (let n = 0; n < 3; n += 1) await bench.cycle();
  expect([back(), bench.works.size]).toEqual([['1', '3', '1', '2'], 0]);
});

test('O4: ids of rows that were written back wait for the log: not those that were there already, nor where none streams', async () => {
  const bench = new SettlerBench();
  const works = bench.transaction(110n, 3);
  bench.missing = new Set(['1', '2', '3']);
  bench.whereabouts = 'gone';
  bench.refused.set('3', refusal('23514', {}));
  for (const work of works) bench.settler.hold(work, parked);
  for (let n = 0; n < 5; n += 1) await bench.cycle();
  expect([bench.works.size, bench.works.writtenBack]).toEqual([1, 2]);
  expect([bench.works.takeWrittenBack('id-1'), bench.works.takeWrittenBack('id-1')]).toEqual([true, false]);
  bench.refused.clear();
  bench.alreadyThere = true;
  bench.clock.advance(30_000);
  for (let n = 0; n < 3; n += 1) await bench.cycle();
  expect([bench.works.size, bench.works.writtenBack]).toEqual([0, 1]);
  const polled = new Works(false);
  polled.writesBack('id-1');
  expect(polled.writtenBack).toBe(0);
});

test('an error of the table itself while a row is written back ends the session', async () => {
  const bench = new SettlerBench();
  const [work] = bench.transaction(110n, 1);
  bench.missing.add('1');
  bench.whereabouts = 'gone';
  bench.refused.set('1', refusal('53100', {}));
  bench.settler.hold(work!, parked);
  for (let n = 0; n < 3; n += 1) await bench.cycle();
  expect(bench.failure).toMatchObject({ code: 'WAYBILL_DATABASE_FAILED' });
});

test.each([
  ['settle', (bench: SettlerBench) => bench.settler.settle(bench.transaction(110n, 1)[0]!, 'published')],
  ['hold', (bench: SettlerBench) => bench.settler.hold(bench.transaction(110n, 1)[0]!, parked)],
])('F61: a %s that waits too long for a lock is tried again at the next interval, and says so', async (what, act) => {
  const bench = new SettlerBench();
  bench.throwNext = lockTimeout();
  act(bench);
  if (what === 'settle') bench.clock.advance(INTERVAL_MS);
  await bench.answer();
  expect([bench.asked.length, bench.warnings.length, bench.failure]).toEqual([1, 1, undefined]);
  await bench.cycle();
  expect(bench.asked.slice(0, 2).map((each) => each.what)).toEqual([what, what]);
  expect(bench.reported.at(-1)).toBe(110n);
});

test('F120 3.5 strict: rows of one key that their application deleted are written back together, in their order', async () => {
  const bench = new SettlerBench();
  bench.whereabouts = 'gone';
  bench.ledger.begin();
  const works = [3n, 1n, 2n].map((order) => bench.keyedRow('k', order));
  bench.ledger.commit(110n);
  bench.missing = new Set(['1', '2', '3']);
  const [third, first, second] = works;
  for (const work of [first!, second!, third!]) bench.settler.hold(work, { ...parked, state: 'blocked' });
  await bench.answer();
  await bench.cycle();
  expect(bench.asked.filter(({ what }) => what === 'write back').map(({ seqs }) => seqs)).toEqual([
    ['2'],
    ['3'],
    ['1'],
  ]);
  expect(bench.works.size).toBe(0);
});

test('3.5 strict: a row from the log that is not found stops none behind it; one that was read by its seq stops its key', async () => {
  const bench = new SettlerBench();
  bench.whereabouts = 'undecided';
  bench.ledger.begin();
  const streamed = [1n, 2n].map((order) => bench.keyedRow('s', order));
  bench.ledger.commit(110n);
  const polled = [3n, 4n, 5n].map((order) => bench.polledRow(order === 5n ? 'other' : 'p', order));
  bench.missing = new Set(['1', '3']);
  const hold = async (n: number, ...works: (Work | undefined)[]): Promise<void> => {
    for (const work of works) bench.settler.hold(work!, n === 0 ? parked : { ...parked, state: 'blocked' });
    await bench.answer();
  };
  await hold(0, streamed[0], polled[0]);
  expect([...(await bench.settler.heldUpKeys()).keys()]).toEqual(['p']);
  await hold(1, streamed[1], polled[1], polled[2]);
  await bench.cycle();
  const held = (): string[] => bench.asked.filter(({ what }) => what === 'hold').flatMap(({ seqs }) => seqs);
  expect(held()).toEqual(['1', '3', '2', '5']);
  expect(bench.works.size).toBe(3);
  bench.missing.clear();
  bench.whereabouts = 'present';
  await bench.cycle();
  await bench.cycle();
  expect(held().slice(4)).toEqual(['1', '3', '4']);
  expect([bench.works.size, (await bench.settler.heldUpKeys()).size]).toEqual([0, 0]);
});

test('3.5 strict: a row that gets a new place holds its position until it has it; one that is gone needs none', async () => {
  const bench = new SettlerBench();
  bench.ledger.begin();
  const [a, b] = [1n, 2n].map((order) => bench.keyedRow('k', order));
  bench.ledger.commit(110n);
  bench.settler.committed();
  bench.throwNext = lockTimeout();
  for (const work of [a, b]) bench.settler.place(work!);
  await bench.answer();
  bench.missing = new Set(['1', '2']);
  await bench.cycle();
  bench.missing = new Set(['1']);
  await bench.cycle();
  bench.whereabouts = 'gone';
  expect([bench.works.size, bench.reported.at(-1)]).toEqual([1, undefined]);
  await bench.cycle();
  const places = bench.asked.filter(({ what }) => what === 'place' || what === 'write back');
  expect(places.map(({ what, seqs }) => `${what} ${seqs.join()}`)).toEqual(['place 1,2', 'place 1,2', 'place 1,2']);
  expect([bench.works.size, bench.reported.at(-1), bench.settler.isIdle]).toEqual([0, 110n, true]);
});

test('a row that a trigger silently keeps is told as that, not as locked; it keeps its position, and stops no other', async () => {
  const bench = new SettlerBench();
  const [good] = bench.transaction(110n, 1);
  const works = bench.transaction(120n, 3);
  const silence = { sqlState: null, table: 'outbox', trigger: 'keep on waybill.outbox' };
  for (const seq of ['2', '3', '4']) bench.silent.set(seq, silence);
  bench.settler.settle(good!, 'published');
  bench.settler.settle(works[0]!, 'published');
  bench.settler.hold(works[1]!, parked);
  for (let n = 0; n < 40; n += 1) await bench.cycle();
  expect(bench.settler.outOfReach).toMatchObject({ locked: 0, refused: 2, refusal: { ...silence, seq: '3' } });
  expect(bench.errors).toMatchObject([
    { ...silence, seq: '3' },
    { ...silence, seq: '2' },
  ]);
  expect(bench.errors.some((fields) => 'err' in fields)).toBe(false);
  // Tried once, and left alone for its time.
  expect(bench.asked.filter(({ what, seqs }) => what !== 'holders' && seqs.includes('2')).length).toBe(1);
  expect([bench.reported.at(-1), bench.counters.settled]).toEqual([110n, 1]);
  // Its application has deleted the other one; that it is written back is silently refused, too.
  bench.missing.add('4');
  bench.whereabouts = 'gone';
  bench.settler.hold(works[2]!, parked);
  for (let n = 0; n < 3; n += 1) await bench.cycle();
  expect([bench.settler.outOfReach.refused, bench.counters.parked]).toEqual([3, 0]);
  bench.silent.clear();
  bench.missing.clear();
  bench.whereabouts = 'present';
  for (let n = 0; n < 160; n += 1) await bench.cycle();
  expect([bench.settler.outOfReach.refused, bench.works.size, bench.reported.at(-1)]).toEqual([0, 0, 120n]);
});

test('a settle that is refused whatever its rows blames none, ends no session, rests, and passes no position', async () => {
  const bench = new SettlerBench();
  const works = bench.transaction(110n, 3_000);
  bench.refusesAll = refusal('P0001', {
    where: 'PL/pgSQL function public.frozen()',
    trigger: 'frozen on waybill.outbox',
  });
  for (const work of works) bench.settler.settle(work, 'published');
  for (let n = 0; n < 24; n += 1) await bench.cycle();
  // Found by halves once, and then nothing for five seconds.
  expect(bench.settles.length).toBeLessThan(20);
  expect([bench.failure, bench.errors.length, bench.settler.outOfReach.refused]).toEqual([undefined, 1, 0]);
  expect(bench.settler.outOfReach.stopped).toMatchObject({ sqlState: 'P0001', trigger: 'frozen on waybill.outbox' });
  expect([bench.reported, bench.works.size]).toEqual([[], 3_000]);
  const [cycles, asked] = [bench.settler.cycles, bench.settles.length];
  for (let n = 0; n < 40; n += 1) await bench.cycle();
  // It does not count as getting on, and is told again after a minute only.
  expect([bench.settler.cycles, bench.errors.length]).toEqual([cycles, 1]);
  expect(bench.settles.length).toBeGreaterThan(asked);
  // Rows are held all the same, and a stop waits for nothing that cannot be.
  bench.settler.hold(bench.tableRow(), parked);
  await bench.answer();
  expect(bench.counters.parked).toBe(1);
  // Whoever waits for all waits without haste.
  const end = new AbortController();
  const endless = bench.settler.flush(end.signal);
  await bench.cycle();
  end.abort();
  await endless;
  let flushed = false;
  const flush = bench.settler.flush(new AbortController().signal, 'refused').then(() => (flushed = true));
  for (let n = 0; n < 3; n += 1) await bench.cycle();
  expect(flushed).toBe(true);
  await flush;
  bench.refusesAll = undefined;
  for (let n = 0; n < 40; n += 1) await bench.cycle();
  expect([bench.works.size, bench.reported.at(-1), bench.settler.outOfReach.stopped]).toEqual([0, 110n, null]);
});

test('O1: while it is asked whether a settle is refused whatever its rows, no position passes the row that was refused', async () => {
  const bench = new SettlerBench();
  const [row] = bench.transaction(110n, 1);
  bench.refused.set('1', refusal('23503', { constraint: 'fk' }));
  bench.settler.settle(row!, 'published');
  for (let n = 0; n < 3; n += 1) await bench.cycle();
  expect(bench.settles.slice(0, 2).map(({ seqs, candidate }) => [seqs, candidate])).toEqual([
    [['1'], 110n],
    [[], 100n],
  ]);
  expect(bench.settler.outOfReach.refused).toBe(1);
});

test('it gets on when rows are settled or parked; not by a row that it did not find, or that waits for its time', async () => {
  const bench = new SettlerBench();
  const [a, b, c, d] = bench.transaction(110n, 4);
  bench.missing.add('1');
  bench.whereabouts = 'undecided';
  bench.settler.settle(a!, 'published');
  await bench.cycle();
  bench.settler.hold(b!, { ...parked, state: 'scheduled', delayMs: 1_000 });
  await bench.cycle();
  expect([bench.settles.length, bench.progress]).toEqual([1, 0]);
  bench.settler.hold(c!, parked);
  await bench.cycle();
  expect(bench.progress).toBe(1);
  bench.settler.settle(d!, 'published');
  await bench.cycle();
  expect(bench.progress).toBe(2);
});

test('any other error ends the session, once, and nothing is settled after it', async () => {
  const bench = new SettlerBench();
  const [a, b] = bench.transaction(110n, 2);
  bench.throwNext = new WaybillError('WAYBILL_EPOCH_LOST', 'taken over');
  bench.settler.settle(a!, 'published');
  await bench.cycle();
  expect(bench.failure).toMatchObject({ code: 'WAYBILL_EPOCH_LOST' });
  bench.settler.settle(b!, 'published');
  bench.settler.hold(bench.tableRow(), parked);
  await bench.cycle();
  expect([bench.asked.length, bench.reported]).toEqual([1, []]);
  await bench.settler.flush(new AbortController().signal);
});

test('fact 74: an expiry commits durably', async () => {
  const bench = new SettlerBench();
  const [a, b] = bench.transaction(110n, 2);
  bench.settler.settle(a!, 'published');
  bench.settler.settle(b!, 'expired');
  await bench.cycle();
  expect(bench.settles.map(({ durable }) => durable)).toEqual([true]);
});

test('F9: a flush settles at once and ends when nothing is left, or when it is aborted', async () => {
  const bench = new SettlerBench();
  const [a, b] = bench.transaction(110n, 2);
  bench.settler.settle(a!, 'published');
  bench.settler.settle(b!, 'published');
  const done = bench.settler.flush(new AbortController().signal);
  await bench.answer();
  await done;
  expect(bench.reported).toEqual([110n]);
  const [c] = bench.transaction(120n, 1);
  bench.missing.add(c!.row.seq);
  bench.whereabouts = 'undecided';
  bench.settler.settle(c!, 'published');
  const deadline = new AbortController();
  const aborted = bench.settler.flush(deadline.signal);
  await bench.answer();
  await bench.cycle();
  deadline.abort();
  await aborted;
  expect(bench.settler.isIdle).toBe(false);
});

test('stop waits for the statement under way and leaves nothing ticking', async () => {
  const bench = new SettlerBench();
  const [a, b] = bench.transaction(110n, 2);
  bench.settler.settle(a!, 'published');
  bench.clock.advance(INTERVAL_MS);
  await turn();
  bench.settler.settle(b!, 'published');
  let stopped = false;
  const stop = bench.settler.stop().then(() => (stopped = true));
  await turn();
  expect(stopped).toBe(false);
  await bench.answer();
  await stop;
  await bench.cycle();
  expect([bench.settles.length, bench.clock.pending]).toEqual([1, 0]);
});

test('one line of the log for each message that nobody got, none for those that went well', async () => {
  const bench = new SettlerBench();
  const [a, b, c, d] = bench.transaction(110n, 4);
  bench.settler.settle(a!, 'published');
  bench.settler.settle(b!, 'expired');
  bench.settler.settle(c!, 'accepted');
  bench.settler.settle(d!, 'cancelled');
  await bench.cycle();
  expect(bench.warnings).toEqual([
    'it was not published before its expires_at',
    'no queue took it, and relay.onUnroutable.then is accept',
  ]);
});
