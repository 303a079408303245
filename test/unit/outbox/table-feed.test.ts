import { describe, expect, test } from 'vitest';
import type { Admission } from '../../../src/outbox/admission.js';
import type { LaneTraffic } from '../../../src/outbox/lane-traffic.js';
import type { Table } from '../../../src/outbox/ports.js';
import type { Settler } from '../../../src/outbox/settler.js';
import { TableFeed } from '../../../src/outbox/table-feed.js';
import { tableWork, Works, type Work } from '../../../src/outbox/work.js';
import type { WaitingRows } from '../../../src/outbox/waiting-rows.js';
import { Turns } from '../../../src/runtime/turns.js';
import { outboxRow } from '../../support/outbox-rows.js';
import { noCounts } from './model-relay.js';

const silent = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };

test('3.4: a row that the stream brings and settles while the answer to the sweep is on its way is not sent again', async () => {
  const works = new Works();
  const rows = ['1', '2', '3'].map((seq) => outboxRow({ seq, id: `id-${seq}` }));
  const admitted: string[] = [];
  let listed = false;
  const table = {
    position: () => Promise.resolve(0n),
    highestSeq: () => Promise.resolve(3n),
    readyRows: () => {
      const list = listed ? [] : rows.map(({ seq }) => ({ seq, bytes: 1 }));
      listed = true;
      return Promise.resolve(list);
    },
    readRows: () => {
      // The answer shows all three; meanwhile the first is published and settled.
      const work = tableWork(rows[0]!, 'poll');
      works.add(work);
      works.remove(work);
      return Promise.resolve(rows.map((row) => ({ row, holdNo: null })));
    },
  } as unknown as Table;
  const admission = {
    admit({ row }: { row: { seq: string } }) {
      admitted.push(row.seq);
      if (row.seq !== '2') return undefined;
      // So does the third while the second waits for room.
      const work = tableWork(rows[2]!, 'poll');
      works.add(work);
      return Promise.resolve().then(() => works.remove(work));
    },
  } as unknown as Admission;
  const feed = new TableFeed({
    table,
    waiting: {} as unknown as WaitingRows,
    works,
    admission,
    counters: noCounts(),
    log: silent,
    turns: new Turns(),
    check: () => undefined,
    lanes: undefined,
    rowsPerKey: 1,
    listRows: Infinity,
  });
  expect(await feed.sweep(() => Promise.resolve())).toBe(1);
  expect(admitted).toEqual(['2']);
});

test('3.5: the key of a row that was discarded is asked, also while the row itself must stay', async () => {
  const row = outboxRow({ seq: '1', id: 'id-1', key: 'k' });
  const table = {
    position: () => Promise.resolve(0n),
    withdrawnRows: (after: bigint) => Promise.resolve(after < 0n ? [{ row, state: 'discarded' }] : []),
  } as unknown as Table;
  const asked: string[] = [];
  const lanes = { ask: (keys: readonly string[]) => void asked.push(...keys) } as unknown as LaneTraffic;
  const feed = new TableFeed({
    table,
    waiting: {} as unknown as WaitingRows,
    works: new Works(),
    admission: {} as unknown as Admission,
    counters: noCounts(),
    log: silent,
    turns: new Turns(),
    check: () => undefined,
    lanes,
    rowsPerKey: 1,
    listRows: Infinity,
  });
  const settler = { lowestSeqAhead: () => 0n } as unknown as Settler;
  await feed.removeWithdrawn(settler, () => Promise.resolve());
  expect(asked).toEqual(['k']);
});

test('3.3: withdrawn rows before all that the log may bring again are removed, those behind stay, however the position stands', async () => {
  const rows = ['5', '7', '8', '9'].map((seq) => outboxRow({ seq, id: `id-${seq}` }));
  const table = {
    position: () => Promise.resolve(100n),
    withdrawnRows: (after: bigint) =>
      Promise.resolve(rows.filter(({ seq }) => BigInt(seq) > after).map((row) => ({ row, state: 'cancelled' }))),
  } as unknown as Table;
  const feed = new TableFeed({
    table,
    waiting: {} as unknown as WaitingRows,
    works: new Works(),
    admission: {} as unknown as Admission,
    counters: noCounts(),
    log: silent,
    turns: new Turns(),
    check: () => undefined,
    lanes: undefined,
    rowsPerKey: 1,
    listRows: Infinity,
  });
  const settled: string[] = [];
  const settler = {
    lowestSeqAhead: (lsn: bigint) => (lsn === 100n ? 8n : 0n),
    settle: ({ row }: Work) => settled.push(row.seq),
  } as unknown as Settler;
  await feed.removeWithdrawn(settler, () => Promise.resolve());
  expect(settled).toEqual(['5', '7']);
});

describe('source: table, whose polls start where nothing more can come', () => {
  /** A table of ready rows by seq, with a sequence, open writers and a note of where each poll began to read. */
  function polled() {
    const state = {
      drawn: 0n,
      writers: new Set<string>(),
      ready: new Set<bigint>(),
      readFrom: [] as bigint[],
      whileReading: (): unknown => undefined,
      log: [] as string[],
      /** Keys behind a row that somebody has locked; each row has the last digit of its seq for a key. */
      heldUp: new Map<string, bigint>(),
    };
    const works = new Works();
    const table = {
      seqs: () => Promise.resolve({ drawn: state.drawn, highest: state.drawn }),
      writers: () => Promise.resolve(new Set(state.writers)),
      position: () => {
        state.log.push('flush');
        return Promise.resolve(0n);
      },
      readyRows: (after: bigint, upto: bigint) => {
        // 0: before every seq, negative ones too.
        state.readFrom.push(after < -(2n ** 62n) ? 0n : after);
        state.whileReading();
        const seqs = [...state.ready].filter((seq) => seq > after && seq <= upto).slice(0, 500);
        return Promise.resolve(seqs.map((seq) => ({ seq: String(seq), bytes: 1, key: String(seq).slice(-1) })));
      },
      readRows: (seqs: readonly string[]) =>
        Promise.resolve(seqs.map((seq) => ({ row: outboxRow({ seq, id: `id-${seq}` }), holdNo: null }))),
    } as unknown as Table;
    const admission = {
      heldUpKeys: () => Promise.resolve(state.heldUp),
      admit(work: Work) {
        // Published and settled at once.
        state.log.push(work.row.seq);
        state.ready.delete(BigInt(work.row.seq));
        works.remove(work);
        return undefined;
      },
    } as unknown as Admission;
    const feed = new TableFeed({
      table,
      waiting: {} as unknown as WaitingRows,
      works,
      admission,
      counters: noCounts(),
      log: silent,
      turns: new Turns(),
      check: () => undefined,
      lanes: {} as unknown as LaneTraffic,
      rowsPerKey: 1,
      listRows: Infinity,
    });
    const poll = async (): Promise<bigint | undefined> => {
      state.readFrom.length = 0;
      await feed.poll();
      return state.readFrom[0];
    };
    return { state, feed, poll };
  }

  test('past rows that are held, however many, once nobody who wrote then is still at it', async () => {
    const { state, poll } = polled();
    state.drawn = 400_000n;
    state.writers = new Set(['3/1', '3/2']);
    expect(await poll()).toBe(0n);
    // Who comes later has later seqs.
    state.writers = new Set(['3/2', '4/1']);
    expect(await poll()).toBe(0n);
    state.writers = new Set(['4/1']);
    state.drawn = 400_010n;
    state.ready.add(17n);
    // This one sees the row of 3/2, and the next needs not look there any more.
    expect(await poll()).toBe(0n);
    expect(state.log).toEqual(['flush', '17']);
    expect(await poll()).toBe(400_000n);
  });

  test('again from the start when asked to, also while a poll is under way', async () => {
    const { state, feed, poll } = polled();
    state.drawn = 5_000n;
    await poll();
    expect(await poll()).toBe(5_000n);
    state.drawn = 10_000n;
    state.whileReading = () => feed.pollFromStart();
    await poll();
    state.whileReading = () => undefined;
    expect(await poll()).toBe(0n);
  });

  test('F57: again from the start when the sequence was set back', async () => {
    const { state, poll } = polled();
    state.drawn = 5_000n;
    await poll();
    state.drawn = 3n;
    state.ready = new Set([1n, 2n, 3n]);
    expect(await poll()).toBe(0n);
    expect(state.log).toEqual(['flush', '1', '2', '3']);
  });

  test('F120: rows behind a locked one of their key stay in the table, and are found again however long it takes', async () => {
    const { state, poll } = polled();
    state.drawn = 5_000n;
    state.ready = new Set([11n, 12n, 21n]);
    state.heldUp.set('1', 1n);
    await poll();
    expect(state.log).toEqual(['flush', '12']);
    // Nothing is flushed for rows that stay.
    expect(await poll()).toBe(0n);
    expect(await poll()).toBe(0n);
    expect(state.log).toEqual(['flush', '12']);
    state.heldUp.clear();
    await poll();
    expect(state.log).toEqual(['flush', '12', 'flush', '11', '21']);
    expect(await poll()).toBe(5_000n);
  });

  test('3.5: the rest of a key whose row stayed behind stays too, although the lock has ended meanwhile', async () => {
    const { state, poll } = polled();
    state.drawn = 1_000n;
    // More than one reading of the list.
    for (let seq = 1n; seq <= 600n; seq += 1n) state.ready.add(seq);
    state.heldUp.set('1', 1n);
    let reads = 0;
    state.whileReading = () => (reads += 1) > 1 && state.heldUp.clear();
    await poll();
    expect(state.log.filter((each) => each.endsWith('1'))).toEqual([]);
    await poll();
    const late = state.log.filter((each) => each.endsWith('1'));
    expect(late.slice(0, 2)).toEqual(['1', '11']);
    expect(late).toHaveLength(60);
  });

  test('F59: nothing is published that is not on the disk of the server', async () => {
    const { state, poll } = polled();
    state.drawn = 2n;
    state.ready = new Set([1n, 2n]);
    await poll();
    expect(state.log).toEqual(['flush', '1', '2']);
  });
});
