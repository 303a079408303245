import { getEventListeners } from 'node:events';
import { describe, expect, it } from 'vitest';
import { WaybillError } from '../../../src/core/errors.js';
import { Gate } from '../../../src/inbox/gate.js';
import { HttpProcessor } from '../../../src/inbox/http-processor.js';
import { Outcomes } from '../../../src/inbox/outcomes.js';
import type { Claim, ConsumerCounters, ConsumerLog, InboxMessage, Outcome } from '../../../src/inbox/ports.js';
import type { DueRow } from '../../../src/inbox/retry-timers.js';
import { Worker } from '../../../src/inbox/worker.js';
import { ManualClock } from '../../support/manual-clock.js';

const nothing = (): void => undefined;
const log: ConsumerLog = { debug: nothing, info: nothing, warn: nothing, error: nothing };
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
const settled = () => Promise.resolve();

function gateOf(clock: ManualClock): Gate {
  return new Gate({ store: { break: settled, mend: settled, giveBack: () => Promise.resolve(0) }, clock, log });
}

describe('rows that are due', () => {
  const ROOM = 60;

  function stage(gatherMs: number) {
    const clock = new ManualClock();
    const claims: { atMs: number; rows: number }[] = [];
    const looks: number[] = [];
    const worker = new Worker({
      store: {
        claim: () => {
          looks.push(clock.now());
          return Promise.resolve(undefined);
        },
        claimRows: (rows) => {
          claims.push({ atMs: clock.now(), rows: rows.length });
          const messages = rows.map(({ seq }) => ({ seq }) as InboxMessage);
          return Promise.resolve<Claim>({ token: 't', messages });
        },
        due: () => Promise.resolve([]),
      },
      gate: gateOf(clock),
      processor: { room: () => ROOM, leaseMs: () => 1_000, gatherMs, process: settled, idle: settled },
      clock,
      log,
    });
    const stopping = new AbortController();
    const ended = worker.run(stopping.signal);
    let seq = 0n;
    return {
      claims,
      looks,
      worker,
      due: (count: number) => worker.due(Array.from({ length: count }, (): DueRow => ({ seq: ++seq, attempt: 2 }))),
      pass: async (ms: number): Promise<void> => {
        for (let n = 0; n < 10; n += 1) await turn();
        clock.advance(ms);
        for (let n = 0; n < 10; n += 1) await turn();
      },
      stop: async (): Promise<void> => {
        stopping.abort();
        await ended;
      },
    };
  }

  it('one is claimed at once; those that follow it closely wait for each other, but no longer than that', async () => {
    const { claims, due, pass, stop } = stage(50);
    await pass(0);
    due(1);
    await pass(10);
    expect(claims).toEqual([{ atMs: 0, rows: 1 }]);
    due(1);
    await pass(10);
    due(2);
    await pass(29);
    expect(claims.length).toBe(1);
    await pass(1);
    expect(claims.slice(1)).toEqual([{ atMs: 50, rows: 3 }]);
    await pass(500);
    due(1);
    await pass(0);
    expect(claims.slice(2)).toEqual([{ atMs: 550, rows: 1 }]);
    await stop();
  });

  it('as many as there is room for wait for nothing', async () => {
    const { claims, due, pass, stop } = stage(50);
    await pass(0);
    due(1);
    await pass(1);
    due(ROOM + 5);
    await pass(0);
    expect(claims.slice(1)).toEqual([{ atMs: 1, rows: ROOM }]);
    await pass(50);
    expect(claims.slice(2)).toEqual([{ atMs: 51, rows: 5 }]);
    await stop();
  });

  it('a look waits meanwhile, because it would claim the same rows, and is not forgotten', async () => {
    const { looks, claims, worker, due, pass, stop } = stage(50);
    await pass(0);
    expect(looks).toEqual([0]);
    due(1);
    await pass(1);
    due(1);
    worker.look();
    await pass(40);
    expect(looks).toEqual([0]);
    await pass(9);
    expect(claims.length).toBe(2);
    expect(looks).toEqual([0, 50]);
    await stop();
  });

  it('without gathering each is claimed as it comes', async () => {
    const { claims, due, pass, stop } = stage(0);
    await pass(0);
    for (let n = 0; n < 3; n += 1) {
      due(1);
      await pass(1);
    }
    expect(claims.map(({ rows }) => rows)).toEqual([1, 1, 1]);
    await stop();
  });
});

describe('hints that the database refuses', () => {
  it.each(['due', 'alone'] as const)('F16: are dropped, and the others are claimed: %s', async (how) => {
    const clock = new ManualClock();
    const claimed: bigint[] = [];
    let looks = 0;
    const worker = new Worker({
      store: {
        claim: () => {
          looks += 1;
          return Promise.resolve(undefined);
        },
        claimRows: (rows) => {
          if (rows.some(({ seq }) => seq === 99n)) {
            return Promise.reject(new WaybillError('WAYBILL_DATABASE_REFUSED', 'as the test says'));
          }
          claimed.push(...rows.map(({ seq }) => seq));
          return Promise.resolve(undefined);
        },
        due: () => Promise.resolve([]),
      },
      gate: gateOf(clock),
      processor: { room: () => 1, leaseMs: () => 1_000, gatherMs: 0, process: settled, idle: settled },
      clock,
      log,
    });
    const stopping = new AbortController();
    const ended = worker.run(stopping.signal);
    const pass = async (): Promise<void> => {
      for (let n = 0; n < 10; n += 1) await turn();
      clock.advance(60_000);
      for (let n = 0; n < 10; n += 1) await turn();
    };
    await pass();
    const before = looks;
    worker[how]([
      { seq: 99n, attempt: 1 },
      { seq: 1n, attempt: 1 },
    ]);
    await pass();
    await pass();
    expect(claimed).toEqual([1n]);
    expect(looks).toBeGreaterThan(before);
    stopping.abort();
    await ended;
  });
});

describe('answers over HTTP', () => {
  it('I4 while one cannot be written down because the database is away there is room for no other', async () => {
    const clock = new ManualClock();
    let code: 'WAYBILL_DATABASE_UNAVAILABLE' | 'WAYBILL_TRANSACTION_REPEATED' | undefined;
    const written: bigint[] = [];
    const processor = new HttpProcessor({
      store: {
        settle: (_, results) => {
          if (code) return Promise.reject(new WaybillError(code, 'as the test says'));
          written.push(...results.map(({ seq }) => seq));
          return Promise.resolve<Outcome[]>([]);
        },
      },
      handler: { concurrency: 4, longestMs: 1_000, handle: () => Promise.resolve({ kind: 'done' }) },
      delaysMs: [1_000],
      gate: gateOf(clock),
      outcomes: new Outcomes({
        counters: {} as ConsumerCounters,
        log,
        logsAll: false,
        followers: { onWaiting: nothing, onDead: nothing, onReleased: nothing, onBlocked: nothing },
        isGivenBack: () => false,
      }),
      clock,
      log,
      giveUp: new AbortController().signal,
      onRoom: nothing,
    });
    const handle = async (seq: bigint): Promise<void> => {
      await processor.process({ token: 't', messages: [{ seq, body: Buffer.alloc(0) } as InboxMessage] }, []);
      for (let n = 0; n < 5; n += 1) await turn();
    };
    const pass = async (): Promise<void> => {
      clock.advance(10_000);
      for (let n = 0; n < 5; n += 1) await turn();
    };
    // A row that somebody has locked is no outage: the others go on.
    code = 'WAYBILL_TRANSACTION_REPEATED';
    await handle(1n);
    expect(processor.room()).toBe(3);
    code = 'WAYBILL_DATABASE_UNAVAILABLE';
    await handle(2n);
    expect(processor.room()).toBe(0);
    await pass();
    expect(processor.room()).toBe(0);
    code = undefined;
    await pass();
    expect(written.sort()).toEqual([1n, 2n]);
    expect(processor.room()).toBe(4);
  });
});

it('F110 no more bodies are claimed at once than fit, as far as those before tell; one is, whatever its size', async () => {
  const clock = new ManualClock();
  const answers: (() => void)[] = [];
  const processor = new HttpProcessor({
    store: { settle: () => Promise.resolve<Outcome[]>([]) },
    handler: {
      concurrency: 100,
      longestMs: 1_000,
      handle: () => new Promise((resolve) => answers.push(() => resolve({ kind: 'done' }))),
    },
    delaysMs: [1_000],
    gate: gateOf(clock),
    outcomes: new Outcomes({
      counters: {} as ConsumerCounters,
      log,
      logsAll: false,
      followers: { onWaiting: nothing, onBlocked: nothing, onDead: nothing, onReleased: nothing },
      isGivenBack: () => false,
    }),
    clock,
    log,
    giveUp: new AbortController().signal,
    onRoom: nothing,
  });
  const claimed = (count: number, mebibytes: number): Promise<void> => {
    const body = Buffer.alloc(mebibytes * 2 ** 20);
    const messages = Array.from({ length: count }, (_, n) => ({ seq: BigInt(n), body }) as InboxMessage);
    return processor.process({ token: 't', messages }, []);
  };
  const answered = async (): Promise<void> => {
    await turn();
    for (const answer of answers.splice(0)) answer();
    await processor.idle();
  };
  expect(processor.room()).toBe(8);
  await claimed(2, 16);
  expect(processor.room()).toBe(2);
  await claimed(2, 16);
  expect(processor.room()).toBe(0);
  await answered();
  await claimed(1, 80);
  expect(processor.room()).toBe(0);
  await answered();
  expect(processor.room()).toBe(1);
  // Small ones again: more with each claim.
  let most = 0;
  for (let n = 0; n < 30; n += 1) {
    await claimed(1, 0);
    await answered();
    most = processor.room();
  }
  expect(most).toBe(100);
});

it('Retry-After makes a delay longer than the schedule says, never shorter', async () => {
  const clock = new ManualClock();
  const delays: (number | undefined)[] = [];
  let retryInMs: number | undefined;
  const processor = new HttpProcessor({
    store: {
      settle: (_, [result]) => {
        const verdict = result?.verdict;
        delays.push(verdict?.kind === 'retry' || verdict?.kind === 'not-yet' ? verdict.retryInMs : undefined);
        return Promise.resolve<Outcome[]>([]);
      },
    },
    handler: {
      concurrency: 1,
      longestMs: 1_000,
      handle: ({ type }) =>
        Promise.resolve({
          kind: type === 'early' ? 'not-yet' : 'retry',
          error: 'HTTP 503',
          ...(retryInMs === undefined ? {} : { retryInMs }),
        }),
    },
    delaysMs: [1_000, 60_000],
    gate: gateOf(clock),
    outcomes: new Outcomes({
      counters: {} as ConsumerCounters,
      log,
      logsAll: false,
      followers: { onWaiting: nothing, onDead: nothing, onReleased: nothing, onBlocked: nothing },
      isGivenBack: () => false,
    }),
    clock,
    log,
    giveUp: new AbortController().signal,
    onRoom: nothing,
  });
  const asked = async (given: number | undefined, attempt: number, type: string | null = null): Promise<void> => {
    retryInMs = given;
    await processor.process(
      { token: 't', messages: [{ seq: 1n, attempt, type, body: Buffer.alloc(0) } as InboxMessage] },
      [],
    );
    await processor.idle();
  };
  await asked(90_000_000, 1);
  await asked(5_000, 2);
  await asked(5_000, 7);
  await asked(undefined, 2);
  await asked(5_000, 2, 'early');
  expect(delays[0]).toBe(90_000_000);
  // As in the table: chance adds up to as much again.
  for (const delay of delays.slice(1, 3)) expect(delay! >= 60_000 && delay! <= 120_000).toBe(true);
  expect(delays.slice(3)).toEqual([undefined, 5_000]);
});

it('F112: messages under way hang on one listener to the end of all waiting, however many they are, and all learn of it', async () => {
  const clock = new ManualClock();
  const giveUp = new AbortController();
  const cut: bigint[] = [];
  const released: bigint[] = [];
  const processor = new HttpProcessor({
    store: {
      settle: (_, results) => {
        released.push(...results.map(({ seq }) => seq));
        return Promise.resolve<Outcome[]>([]);
      },
    },
    handler: {
      concurrency: 32,
      longestMs: 1_000,
      handle: ({ seq }, signal) =>
        new Promise((_, reject) => {
          signal.addEventListener('abort', () => {
            cut.push(seq);
            reject(new WaybillError('WAYBILL_STOPPED', 'stopping'));
          });
        }),
    },
    delaysMs: [1_000],
    gate: gateOf(clock),
    outcomes: new Outcomes({
      counters: {} as ConsumerCounters,
      log,
      logsAll: false,
      followers: { onWaiting: nothing, onDead: nothing, onReleased: nothing, onBlocked: nothing },
      isGivenBack: () => false,
    }),
    clock,
    log,
    giveUp: giveUp.signal,
    onRoom: nothing,
  });
  const messages = Array.from({ length: 32 }, (_, n) => ({ seq: BigInt(n), body: Buffer.alloc(0) }) as InboxMessage);
  await processor.process({ token: 't', messages }, []);
  await turn();
  expect(getEventListeners(giveUp.signal, 'abort').length).toBe(1);
  giveUp.abort();
  await processor.idle();
  expect(cut.length).toBe(32);
  expect(released.length).toBe(32);
});
