import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Breaker, breakerOutcome, type BreakerOutcome, type Ticket } from '../../../src/core/breaker.js';

const pause = { firstMs: 100, factor: 2, maxMs: 1_000, jitter: 0.2 };

type Step =
  | { kind: 'ask' }
  | { kind: 'settle'; which: number; id: number; outcome: BreakerOutcome; random: number }
  | { kind: 'withdraw'; which: number }
  | { kind: 'pass'; byMs: number };

const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    { weight: 4, arbitrary: fc.record({ kind: fc.constant('ask' as const) }) },
    {
      weight: 6,
      arbitrary: fc.record({
        kind: fc.constant('settle' as const),
        which: fc.nat(),
        id: fc.nat({ max: 4 }),
        outcome: fc.constantFrom<BreakerOutcome>('broken', 'broken', 'broken', 'broken', 'failed', 'answered'),
        random: fc.double({ min: 0, max: 0.999, noNaN: true }),
      }),
    },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('withdraw' as const), which: fc.nat() }) },
    { weight: 3, arbitrary: fc.record({ kind: fc.constant('pass' as const), byMs: fc.nat({ max: 700 }) }) },
  ),
  { maxLength: 120, size: 'max' },
);

/** What was spent since the last answer, told by a plain list. */
interface Spent {
  id: string;
  outcome: BreakerOutcome;
  atMs: number;
}

test('F126, I4: opening gives back every broken attempt since the last answer, and nothing is spent while it is open', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 4 }), steps, (threshold, all) => {
      const breaker = new Breaker({ threshold, pause });
      const out: { ticket: Ticket; isProbe: boolean; epoch: number }[] = [];
      let nowMs = 0;
      let epoch = 0;
      let notBeforeMs = 0;
      let lastPauseMs = 0;
      let streak: Spent[] = [];
      for (const step of all) {
        if (step.kind === 'pass') {
          nowMs += step.byMs;
          continue;
        }
        if (step.kind === 'ask') {
          const before = breaker.state;
          const admission = breaker.admit(nowMs);
          const probing = out.some(({ isProbe }) => isProbe);
          if (before === 'closed') expect(admission).toHaveProperty('ticket');
          else expect('ticket' in admission).toBe(!probing && nowMs >= notBeforeMs);
          if ('ticket' in admission) out.push({ ticket: admission.ticket, isProbe: before !== 'closed', epoch });
          continue;
        }
        const [attempt] = out.splice(step.which % Math.max(1, out.length), 1);
        if (!attempt) continue;
        if (step.kind === 'withdraw') {
          breaker.withdraw(attempt.ticket);
          if (attempt.isProbe) expect(breaker.state).toBe('open');
          continue;
        }
        const id = String(step.id);
        const before = breaker.state;
        const ruling = breaker.settle(attempt.ticket, id, step.outcome, nowMs, step.random);
        const isStale = !attempt.isProbe && attempt.epoch !== epoch;
        if (step.outcome === 'answered') expect(ruling.spends).toBe(false);
        if (step.outcome === 'failed') expect(ruling.spends).toBe(true);
        if (before !== 'closed' || isStale) expect(ruling.spends).toBe(step.outcome === 'failed');
        if (ruling.change !== 'opened') expect(ruling.refunds).toEqual([]);
        if (attempt.isProbe) {
          expect(ruling.change).toBe(step.outcome === 'answered' ? 'closed' : 'probe-failed');
          expect(breaker.state).toBe(step.outcome === 'answered' ? 'closed' : 'open');
          if (step.outcome === 'answered') streak = [];
          if (ruling.change !== 'probe-failed') continue;
        } else if (isStale) {
          expect([ruling.change, breaker.state]).toEqual(['none', before]);
          continue;
        } else {
          if (step.outcome === 'answered') streak = [];
          if (step.outcome === 'broken') streak.push({ id, outcome: 'broken', atMs: nowMs });
          const ids = new Set(streak.map((spent) => spent.id));
          expect(ruling.change).toBe(ids.size >= threshold ? 'opened' : 'none');
          if (ruling.change !== 'opened') {
            if (step.outcome === 'broken') expect(ruling.spends).toBe(true);
            continue;
          }
          expect(ruling.spends).toBe(false);
          const owed = new Map<string, number>();
          for (const spent of streak.slice(0, -1)) owed.set(spent.id, (owed.get(spent.id) ?? 0) + 1);
          expect(new Map(ruling.refunds.map((refund) => [refund.id, refund.attempts]))).toEqual(owed);
          streak = [];
          epoch += 1;
          lastPauseMs = 0;
        }
        // It has just opened, or opened again: the pauses grow while probes are broken, up to the cap.
        const admission = breaker.admit(nowMs);
        expect(admission).not.toHaveProperty('ticket');
        notBeforeMs = ('untilMs' in admission && admission.untilMs) || 0;
        const pauseMs = notBeforeMs - nowMs;
        expect(pauseMs).toBeGreaterThanOrEqual(lastPauseMs / (1 + pause.jitter) - 1);
        expect(pauseMs).toBeLessThanOrEqual(pause.maxMs * (1 + pause.jitter));
        lastPauseMs = pauseMs;
      }
    }),
    { numRuns: 2_000 },
  );
});

test('F104: one message that is broken again and again spends its attempts and opens nothing', () => {
  const breaker = new Breaker({ threshold: 2, pause });
  for (let n = 0; n < 20; n += 1) {
    const admission = breaker.admit(0);
    if (!('ticket' in admission)) throw new Error('not admitted');
    expect(breaker.settle(admission.ticket, 'one', 'broken', 0, 0)).toMatchObject({ spends: true, change: 'none' });
  }
});

test('F126: the pauses between probes double up to the cap, and a closed breaker begins anew', () => {
  const breaker = new Breaker({ threshold: 1, pause: { ...pause, jitter: 0 } });
  const pauses: number[] = [];
  let nowMs = 0;
  const attempt = (outcome: BreakerOutcome): void => {
    const admission = breaker.admit(nowMs);
    if (!('ticket' in admission)) throw new Error('not admitted');
    breaker.settle(admission.ticket, 'any', outcome, nowMs, 0);
    const next = breaker.admit(nowMs);
    if ('ticket' in next) breaker.withdraw(next.ticket);
    else {
      pauses.push((next.untilMs ?? NaN) - nowMs);
      nowMs = next.untilMs ?? NaN;
    }
  };
  attempt('broken');
  attempt('broken');
  attempt('failed');
  for (let n = 0; n < 4; n += 1) attempt('broken');
  attempt('answered');
  attempt('broken');
  expect(pauses).toEqual([100, 200, 200, 400, 800, 1_000, 1_000, 100]);
});

test('which verdicts say that the consumer works', () => {
  const error = '';
  expect(breakerOutcome({ kind: 'done' })).toBe('answered');
  expect(breakerOutcome({ kind: 'never', error })).toBe('answered');
  expect(breakerOutcome({ kind: 'not-yet', error })).toBe('answered');
  expect(breakerOutcome({ kind: 'retry', error })).toBe('failed');
  expect(breakerOutcome({ kind: 'broken', error })).toBe('broken');
});
